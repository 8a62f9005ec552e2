"""danlu new: presets, tokenizers, what is written, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from danlu.cli.main import main
from danlu.cli.new import read_config
from danlu.core.errors import ConfigError, DataError, UserError
from danlu.models.new import create_base, presets
from danlu.models.new_config import NewConfig
from danlu.models.new_tokenizer import END, PAD, train_tokenizer
from tests.tiny import save_tiny

TEXT = "The cat sat on the mat. 天空是什么颜色？天空是蓝色的。 In 2024 it rained 31 days.\n" * 40
SIZES = {"m": 1e6, "b": 1e9}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def small(out: Path, corpus: Path, **keys: object) -> NewConfig:
    return NewConfig.model_validate({
        "output_dir": str(out), "tokenizer_corpus": str(corpus), "vocab_size": 300,
        "config_overrides": {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}, **keys})


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_the_size_of_its_name(name: str) -> None:
    settings = dict(presets()[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[settings.pop("model_type")](**settings))
    said = name.split("-")[1]
    expected = float(said[:-1]) * SIZES[said[-1]]
    assert model.num_parameters() == pytest.approx(expected, rel=0.25 if said == "2m" else 0.1)


@pytest.mark.parametrize("arch", ["llama-2m", "qwen3-2m", "gpt2-2m"])
def test_plain_transformers_reads_what_is_made(arch: str, corpus: Path, tmp_path: Path) -> None:
    sizes = {"n_embd": 48} if arch.startswith("gpt2") else {"hidden_size": 48}
    made = create_base(small(tmp_path / "out", corpus, architecture=arch, config_overrides=sizes))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == made.parameters
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == made.vocabulary <= 300
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not list(tmp_path.glob(".*partial"))
    loss = model(**tokenizer("天空是蓝色的。", return_tensors="pt"), labels=None)
    assert torch.isfinite(loss.logits).all()


def test_the_seed_decides_the_weights(corpus: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create_base(small(tmp_path / name, corpus, seed=seed))
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("text", [
    "天空是蓝色的，猫。", "  two  blanks\n\nand\tmore ", "emoji 🔥 ∑ and \u200d", "in 1984"])
def test_the_tokenizer_round_trips_any_text(text: str, corpus: Path) -> None:
    tokenizer = train_tokenizer([str(corpus)], 400)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    if "1984" in text:
        assert tokenizer.convert_ids_to_tokens(ids)[-4:] == list("1984")


def test_the_text_column_and_all_strings_are_read(tmp_path: Path) -> None:
    rows = [{"text": "zzzzzzzz zzzzzzzz", "note": "qqqqqqqq"}] * 20
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "chat.json").write_text(json.dumps([{"conversations": [{"value": "qqqqqqqq qqqqqqqq"}]}] * 20), "utf-8")
    one = train_tokenizer([str(tmp_path / "rows.jsonl")], 300).get_vocab()
    assert "zzzzzzzz" in one and "qqqqqqqq" not in one
    both = train_tokenizer([str(tmp_path / "rows.jsonl"), str(tmp_path / "chat.json")], 300).get_vocab()
    assert "zzzzzzzz" in both and "qqqqqqqq" in both


def test_control_tokens_of_the_template_are_tokens(corpus: Path, tmp_path: Path) -> None:
    create_base(small(tmp_path / "out", corpus, template="chatml"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "天空"}], add_generation_prompt=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<|im_start|>" and tokenizer.get_vocab()["<|im_end|>"] in ids
    assert len(tokenizer) <= 300


def test_an_existing_tokenizer_is_taken_over(tmp_path: Path) -> None:
    save_tiny(tmp_path / "other")
    made = create_base(NewConfig.model_validate({
        "output_dir": str(tmp_path / "out"), "tokenizer_name_or_path": str(tmp_path / "other"),
        "architecture": "gpt2-2m", "special_tokens": "<think>", "dtype": "bfloat16"}))
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "other"))
    assert ours("the cat 天空")["input_ids"] == theirs("the cat 天空")["input_ids"]
    assert made.vocabulary == len(theirs) + 1 == len(ours)
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_config_file_is_an_architecture(corpus: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "gemma")
    for name, source in (("a", base), ("b", base / "config.json")):
        create_base(small(tmp_path / name, corpus, architecture=str(source), config_overrides={}))
        assert AutoConfig.from_pretrained(tmp_path / name).model_type == "gemma"


@pytest.mark.parametrize(("keys", "said"), [
    ({"architecture": "llama-3m"}, "llama-2m"),
    ({"config_overrides": {"hidden_sise": 48}}, "hidden_size"),
    ({"config_overrides": {"hidden_size": 50}}, "attention heads"),
    ({"config_overrides": {"num_key_value_heads": 4}}, "key and value heads"),
    ({"vocab_size": 257 + 4}, None),
    ({"special_tokens": ",".join(f"<{i}>" for i in range(60))}, "vocab_size"),
    ({"tokenizer_corpus": "nowhere.txt"}, "nowhere.txt"),
    ({"template": "chatlm"}, "chatml"),
], ids=str)
def test_mistakes_are_named(keys: dict[str, object], said: str | None, corpus: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "out", corpus, **keys)
    if said is None:
        assert create_base(config).vocabulary == 261
        return
    with pytest.raises(UserError, match=said):
        create_base(config)
    assert not (tmp_path / "out").exists()


def test_an_empty_or_broken_corpus_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match="empty.txt"):
        train_tokenizer([str(tmp_path / "empty.txt")], 300)
    with pytest.raises(DataError, match="bad.jsonl:2"):
        train_tokenizer([str(tmp_path / "bad.jsonl")], 300)


def test_a_folder_in_use_is_kept(corpus: Path, tmp_path: Path) -> None:
    create_base(small(tmp_path / "out", corpus))
    with pytest.raises(UserError, match="holds files already"):
        create_base(small(tmp_path / "out", corpus))
    create_base(small(tmp_path / "out", corpus, seed=7, overwrite_output_dir=True))


def test_command_line_and_file_mean_the_same(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(f"output_dir: {tmp_path / 'out'}\narch: qwen3-2m\ntokenizer_corpus: [{corpus}]\nvocab_size: 300\n"
                    "config_overrides: {num_hidden_layers: 2}\nhidden_size: 48\n", encoding="utf-8")
    words = [str(tmp_path / "out"), "--arch", "qwen3-2m", "--train-tokenizer-on", str(corpus), "--vocab_size=300",
             "num_hidden_layers=2", "--hidden_size", "48"]
    assert read_config([str(file)]) == read_config(words)
    assert read_config([str(file), "seed=3"]).seed == 3
    assert main(["new", *words]) == 0 and AutoConfig.from_pretrained(tmp_path / "out").hidden_size == 48


@pytest.mark.parametrize(("words", "said"), [
    (["out", "--vocab_size", "many", "--tokenizer_corpus", "a.txt"], "vocab_size"),
    (["out", "--arch", "llama-2m"], "tokenizer_corpus"),
    (["--arch", "llama-2m", "--tokenizer_corpus", "a.txt"], "output_dir"),
    (["out", "--architectur", "llama-2m"], "architecture"),
    (["out", "stray"], "stray"),
], ids=str)
def test_mistakes_on_the_command_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(words)
