"""An exported reward model gives plain transformers the rewards that danlu computes, family by family."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from danlu.cli.main import main
from danlu.core.records import Message, Origin, Preference
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext
from danlu.data.encode_answers import encode_judged, keep_answers_together
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM, load_value_head
from danlu.models.stream_tensors import StreamTensors
from danlu.templates import resolve
from tests.tiny import CHATML, FAMILIES, save_tiny, tiny_tokenizer

CONSTANT = 0.37
ANSWERS = [("what colour is sky", ("blue", "wet")), ("天空 是 什么 颜色", ("蓝色", "猫 是", "warm and blue"))]


def with_head(folder: Path, size: int = 32) -> Path:
    """Put a value head beside a model, as stage rm does."""
    weight = torch.randn(1, size, generator=torch.Generator().manual_seed(3))
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([CONSTANT])},
              folder / "value_head.safetensors")
    return folder


def examples(folder: Path) -> Sequence[Example]:
    """Encode the answers as stage rm does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = resolve(None, tokenizer)
    records = [Preference((Message("user", q),), tuple(Message("assistant", a) for a in answers), Origin("row", 1))
               for q, answers in ANSWERS]
    config = DataConfig()
    return keep_answers_together(encode_judged(records, EncodeContext(tokenizer, template, config)), config)


def danlu_rewards(folder: Path, rows: Sequence[Example]) -> torch.Tensor:
    scorer = RewardLM(PackedLM(AutoModelForCausalLM.from_pretrained(folder))).eval()
    load_value_head(scorer, folder)
    with torch.no_grad():
        return scorer(StreamTensors.of(list(rows)))


def plain_rewards(folder: Path, rows: Sequence[Example]) -> torch.Tensor:
    """One padded batch through stock transformers; the padding token is the model's own."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == 1 and model.config.id2label == {0: "reward"}
    tokenizer, ids = AutoTokenizer.from_pretrained(folder), []
    assert tokenizer.pad_token_id == model.config.get_text_config().pad_token_id
    for one in rows:
        ids += torch.tensor(one.input_ids).split(list(one.lengths))
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
    with torch.no_grad():
        return model(padded, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rewards_are_equal_in_every_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal up to the head's constant, which is told; the folder says what it is and how it is asked."""
    base = with_head(save_tiny(tmp_path / "rm", family, CHATML))
    assert main(["export", f"model_name_or_path={base}", f"export_dir={tmp_path / 'out'}"]) == 0
    assert f"constant {CONSTANT}" in capsys.readouterr().err
    rows = examples(base)
    torch.testing.assert_close(plain_rewards(tmp_path / "out", rows), danlu_rewards(base, rows) - CONSTANT,
                               atol=1e-5, rtol=1e-4)
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert report["kind"] == "sequence-classification" and report["constant"] == pytest.approx(CONSTANT)
    assert report["logits"][-1] | {"difference": 0} == {
        "what": "saved = trained", "unit": "rewards", "passed": True, "difference": 0,
        "allowed": report["logits"][-1]["allowed"]}


def test_padding_never_hides_the_end_of_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the padding token also ends answers, the classifier would read the token before: another one pads."""
    base = save_tiny(tmp_path / "rm", "llama", CHATML)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(base)
    with_head(base)
    assert main(["export", f"model_name_or_path={base}", f"export_dir={tmp_path / 'out'}"]) == 0
    assert "padding token <|im_end|> ends answers" in capsys.readouterr().err
    rows = examples(base)
    torch.testing.assert_close(plain_rewards(tmp_path / "out", rows), danlu_rewards(base, rows) - CONSTANT,
                               atol=1e-5, rtol=1e-4)


def test_the_card_tells_how_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    """The code of README.md, run as printed, prints danlu's reward of that answer."""
    base = with_head(save_tiny(tmp_path / "rm", "llama", CHATML))
    assert main(["export", f"model_name_or_path={base}", f"export_dir={tmp_path / 'out'}"]) == 0
    code = (tmp_path / "out" / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    printed = float(capsys.readouterr().out.split("tensor(")[1].split(",")[0])
    tokenizer = AutoTokenizer.from_pretrained(base)
    record = Preference((Message("user", "1 + 1 = ?"),), (Message("assistant", "2"), Message("assistant", "3")),
                        Origin("row", 1))
    config = DataConfig()
    encoded = encode_judged([record], EncodeContext(tokenizer, resolve(None, tokenizer), config))
    expected = danlu_rewards(base, keep_answers_together(encoded, config))[0] - CONSTANT
    assert printed == pytest.approx(float(expected), abs=1e-3)


def test_an_adapter_becomes_a_classifier_and_a_peft_adapter_of_one(tmp_path: Path, world: Path) -> None:
    """S2c: LoRA trains, saves and scores; merged for transformers, and as SEQ_CLS adapter for peft: one reward."""
    base, run, out = save_tiny(tmp_path / "base", "qwen3", CHATML), tmp_path / "run", tmp_path / "out"
    assert main(["train", "stage=rm", f"model_name_or_path={base}", "dataset=pairs", f"dataset_dir={world}",
                 f"output_dir={run}", "finetuning_type=lora", "max_steps=4", "learning_rate=0.02"]) == 0
    assert main(["export", f"model_name_or_path={run}", f"export_dir={out}"]) == 0
    rows = examples(run)
    scorer = RewardLM(PackedLM(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run))).eval()
    load_value_head(scorer, run)
    constant = float(load_file(run / "value_head.safetensors")["v_head.summary.bias"])
    with torch.no_grad():
        expected = scorer(StreamTensors.of(list(rows))) - constant
    torch.testing.assert_close(plain_rewards(out, rows), expected, atol=1e-5, rtol=1e-4)
    pad = AutoTokenizer.from_pretrained(out).pad_token_id
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=pad)
    adapted = PeftModel.from_pretrained(plain, out / "adapter").eval()
    assert adapted.peft_config["default"].task_type == "SEQ_CLS"
    ids = torch.tensor(rows[0].input_ids[: rows[0].lengths[0]])[None]
    with torch.no_grad():
        assert float(adapted(ids).logits[0, 0]) == pytest.approx(float(expected[0]), abs=1e-4)


def test_a_family_without_a_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names the class, writes nothing, and says how to use the reward model as it is."""
    from transformers import CohereConfig, CohereForCausalLM

    base = tmp_path / "rm"
    CohereForCausalLM(CohereConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(base)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(base)
    with_head(base)
    assert main(["export", f"model_name_or_path={base}", f"export_dir={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert "no sequence classifier of the family of CohereForCausalLM" in said and "danlu eval" in said
    assert not (tmp_path / "out").exists()
