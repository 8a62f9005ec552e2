"""Loading: what is refused and how, number formats, counts, tokens and rows, targets, layers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from danlu.core.errors import ConfigError, DataError, UserError
from danlu.models.adapters import linear_names, resolve_targets
from danlu.models.architecture import learned_positions
from danlu.models.check import check_positions, check_token_ids
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.freeze import layer_stack, train_some_layers
from danlu.models.load import count_parameters, load_model
from danlu.models.save import ModelSaver
from danlu.models.tokenizer import load_tokenizer
from danlu.models.vocabulary import embedding_rows
from tests.tiny import CHATML, FAMILIES, save_tiny, tiny_model, tiny_tokenizer

LORA = AdapterConfig(lora_rank=4)
FULL = AdapterConfig(finetuning_type="full")


def load(
    base: Path | str, adapter: AdapterConfig = LORA, dtype: torch.dtype = torch.float32, *, trainable: bool = True,
    bits: int | None = None, **keys: object,
) -> nn.Module:
    config = ModelConfig(model_name_or_path=str(base), **keys)
    return load_model(config, QuantizationConfig(quantization_bit=bits), adapter, tokenizer=load_tokenizer(config),
                      trainable=trainable, compute_dtype=dtype)


def dtypes(model: nn.Module, trains: bool) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad == trains}


@pytest.mark.parametrize("family", FAMILIES)
def test_master_weights_are_float32_and_the_frozen_base_is_not(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path, family)
    freeze = AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=1)
    assert dtypes(load(base, FULL, torch.bfloat16), True) == {torch.float32}
    for config in (LORA, freeze):
        model = load(base, config, torch.bfloat16)
        assert dtypes(model, True) == {torch.float32} and dtypes(model, False) == {torch.bfloat16}
    for config in (FULL, LORA, freeze):
        pure = load(base, config.model_copy(update={"pure_bf16": True}), torch.bfloat16)
        assert dtypes(pure, True) == {torch.bfloat16}


def test_trained_embeddings_beside_an_adapter_are_float32(tiny_base: Path) -> None:
    model = load(tiny_base, LORA.model_copy(update={"additional_target": ("embed_tokens",)}), torch.bfloat16)
    assert dtypes(model, True) == {torch.float32}


def test_parameters_are_counted(tiny_base: Path) -> None:
    """Llama of 2 layers, hidden 32, key and value width 16, inner 64; rank 4 puts 4 (in + out) on each matrix."""
    per_layer = 2 * 4 * (32 + 32) + 2 * 4 * (32 + 16) + 3 * 4 * (32 + 64)
    trainable, total = count_parameters(load(tiny_base))
    plain = sum(p.numel() for p in tiny_model().parameters())
    assert trainable == 2 * per_layer and total == plain + trainable


def test_packed_weights_count_every_value(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path, hidden_size=64, intermediate_size=128)
    assert count_parameters(load(base, bits=4)) == count_parameters(load(base))


def test_train_from_scratch_draws_new_weights_under_the_seed(tiny_base: Path) -> None:
    def drawn(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        torch.manual_seed(seed)
        return load(tiny_base, FULL, dtype, train_from_scratch=True).get_input_embeddings().weight.detach().clone()

    assert torch.equal(drawn(1), drawn(1)) and torch.equal(drawn(1), drawn(1, torch.bfloat16))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), load(tiny_base, FULL).get_input_embeddings().weight)


def adapter_alone(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def weights_missing(folder: Path) -> Path:
    save_tiny(folder)
    (folder / "model.safetensors").unlink()
    return folder


def broken_config(folder: Path) -> Path:
    save_tiny(folder)
    (folder / "config.json").write_text('{"model_type": "llama", ', encoding="utf-8")
    return folder


def other_shape(folder: Path) -> Path:
    save_tiny(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 80}), encoding="utf-8")
    return folder


def layer_missing(folder: Path) -> Path:
    save_tiny(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}), encoding="utf-8")
    return folder


def truncated_weights(folder: Path) -> Path:
    save_tiny(folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    return folder


def unknown_type(folder: Path) -> Path:
    save_tiny(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "lama"}), encoding="utf-8")
    return folder


def parent_of_checkpoints(folder: Path) -> Path:
    save_tiny(folder / "checkpoint-7")
    return folder


@pytest.mark.parametrize(("make", "said"), [
    (lambda folder: folder / "nowhere" / "deep", ["does not exist"]),
    (adapter_alone, ["is an adapter, not a model", "adapter_name_or_path"]),
    (weights_missing, ["*.safetensors"]),
    (broken_config, ["model"]),
    (other_shape, ["mismatch"]),
    (layer_missing, ["layers.2"]),
    (truncated_weights, ["model"]),
    (unknown_type, ["lama", "model_type"]),
    (parent_of_checkpoints, ["config.json", "checkpoint-7"]),
], ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_model_folder_is_explained(
    make: Callable[[Path], Path], said: list[str], tmp_path: Path, tiny_base: Path,
) -> None:
    folder = make(tmp_path / "model")
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(model_name_or_path=str(folder)), QuantizationConfig(), LORA,
                   tokenizer=tiny_tokenizer(), trainable=True, compute_dtype=torch.float32)
    assert all(part in str(caught.value) for part in (*said, str(folder).split("/nowhere")[0])), caught.value


def test_a_misspelt_folder_gets_the_nearest_name(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama-base")
    with pytest.raises(UserError, match=r'did you mean "llama-base"\?'):
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path / "lama-base")))


def test_an_empty_folder_names_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json.*found nothing"):
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))


def test_a_hub_id_without_network_is_a_sentence() -> None:
    with pytest.raises(UserError, match="someone/some-model"):
        load_tokenizer(ModelConfig(model_name_or_path="someone/some-model"))


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_quantised_weights_do_not_train(method: str, tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="finetuning_type: lora"):
        load(tiny_base, AdapterConfig(finetuning_type=method), bits=4)


def test_a_model_stored_quantised_loads_and_trains(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    packed = load(base, trainable=False, bits=4)
    packed.save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, packed.eval()(ids).logits, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot train quantised weights"):
        load(tmp_path / "packed", FULL)


# ---- tokens and rows

def test_tokens_are_added_and_get_rows(tiny_base: Path) -> None:
    keys = {"add_tokens": "仙丹,炉火", "add_special_tokens": "<think>,<pad>"}
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(tiny_base), **keys))
    assert tokenizer.tokenize("a仙丹<think>") == ["a", "仙丹", "<think>"]
    assert tokenizer.decode(tokenizer("a<think>")["input_ids"], skip_special_tokens=True) == "a"
    model = load(tiny_base, FULL, **keys)
    assert embedding_rows(model) >= len(tokenizer) and model.config.vocab_size == embedding_rows(model)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_resized_rows_train_with_the_adapter_and_come_back(family: str, tmp_path: Path) -> None:
    """The adapter carries its new rows: loading it on the untouched base grows the base again."""
    base = save_tiny(tmp_path / "base", family, CHATML)
    torch.manual_seed(0)
    config = ModelConfig(model_name_or_path=str(base), add_special_tokens="<new>")
    tokenizer = load_tokenizer(config)
    model = load_model(config, QuantizationConfig(), LORA, tokenizer=tokenizer, trainable=True,
                       compute_dtype=torch.float32)
    assert embedding_rows(model) > 320
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    ModelSaver(tokenizer, None, str(base)).save(model, tmp_path / "out")
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("<new>"), 5, 6]])
    for trainable in (False, True):
        again = load(base, trainable=trainable, adapter_name_or_path=str(tmp_path / "out"))
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-5)


def test_described_tokens_start_at_the_mean_of_their_description(tiny_base: Path, tmp_path: Path) -> None:
    words = tmp_path / "tokens.yaml"
    words.write_text('"<猫>": "the cat sat"\n', encoding="utf-8")
    keys = {"new_special_tokens_config": str(words), "init_special_tokens": "desc_init"}
    config = ModelConfig(model_name_or_path=str(tiny_base), **keys)
    tokenizer = load_tokenizer(config)
    ids = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    new = tokenizer.convert_tokens_to_ids("<猫>")
    model = load(tiny_base, FULL, **keys)
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.testing.assert_close(weight[new], weight[ids].mean(dim=0))
    noisy = load(tiny_base, FULL, **{**keys, "init_special_tokens": "desc_init_w_noise"})
    shift = (noisy.get_input_embeddings().weight - model.get_input_embeddings().weight)[new].abs()
    assert 0 < shift.mean() < 0.2 * model.get_input_embeddings().weight.std()
    words.write_text("- a list\n", encoding="utf-8")
    with pytest.raises(UserError, match="map of tokens"):
        load_tokenizer(config)


def test_the_router_loss_is_weighted_and_needs_a_router(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no router"):
        load(tiny_base, FULL, moe_aux_loss_coef=0.01)
    settings = CONFIG_MAPPING["mixtral"](
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, FULL, moe_aux_loss_coef=0.5)
    ids = torch.tensor([[5, 6, 7, 8]])
    out = model.eval()(ids, labels=ids)
    plain = load(tmp_path, FULL).eval()(ids, labels=ids)
    torch.testing.assert_close(out.loss, plain.loss + 0.5 * out.aux_loss)


def test_special_tokens_can_be_split(tiny_base: Path) -> None:
    whole, split = (load_tokenizer(ModelConfig(model_name_or_path=str(tiny_base), split_special_tokens=flag))
                    for flag in (False, True))
    assert len(whole("<|im_end|>")["input_ids"]) == 1 < len(split("<|im_end|>")["input_ids"])


def test_gpt2_style_files_make_a_tokenizer(tmp_path: Path) -> None:
    """vocab.json and merges.txt alone, as GPT-2 came."""
    base = save_tiny(tmp_path, "gpt2")
    fast = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    expected = AutoTokenizer.from_pretrained(base)("the cat 天空")["input_ids"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    (base / "vocab.json").write_text(json.dumps(fast["vocab"]), encoding="utf-8")
    (base / "merges.txt").write_text("\n".join(" ".join(pair) for pair in fast["merges"]), encoding="utf-8")
    assert load_tokenizer(ModelConfig(model_name_or_path=str(base)))("the cat 天空")["input_ids"] == expected


def test_sentencepiece_alone_makes_a_tokenizer(tmp_path: Path) -> None:
    import sentencepiece

    base = save_tiny(tmp_path / "base", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat\n天空 是 什么 颜色\n" * 30, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(base / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, pad_id=-1)
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(base)))
    ids = tokenizer("the cat 天空", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == "the cat 天空" and 1 < len(ids) < 14


def test_ids_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    """320 rows; sixty added tokens reach id 379; the one that the data uses is <extra_55>, id 375."""
    base = save_tiny(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    size = len(tokenizer)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400 - size)])
    tokenizer.save_pretrained(base)
    config = ModelConfig(model_name_or_path=str(base))
    model = load(base)
    bad = tokenizer.convert_tokens_to_ids("<extra_55>")
    check_token_ids([0, 5, 319], load_tokenizer(config), model)
    with pytest.raises(DataError) as caught:
        check_token_ids([5, bad, 7], load_tokenizer(config), model, where="rows.jsonl:3")
    for part in (f"{bad} (<extra_55>)", "320 rows", "tokenizer", str(base), "resize_vocab: true", "rows.jsonl:3"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="-1, 9999"):
        check_token_ids([-1, 9999], load_tokenizer(config), model)


def test_texts_beyond_a_table_of_positions_are_refused() -> None:
    """GPT-2 and OPT look 256 positions up (OPT has two rows more, for padding); Llama and BLOOM compute them."""
    known = {family: learned_positions(tiny_model(family)) for family in ("gpt2", "opt", "llama", "bloom")}
    assert known == {"gpt2": 256, "opt": 256, "llama": None, "bloom": None}
    check_positions((256, ""), 256, 256)
    check_positions((257, ""), None, 256)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: .* 257 tokens.*\n.*cutoff_len: 256"):
        check_positions((257, "rows.jsonl:3"), 256, 256)


# ---- adapters

@pytest.mark.parametrize("family", FAMILIES)
def test_all_means_every_linear_layer_but_the_head(family: str, tmp_path: Path) -> None:
    model = load(save_tiny(tmp_path, family))
    base = model.get_base_model()
    adapted = {name for name, module in base.named_modules() if name.endswith(".base_layer")}
    linear = tiny_model(family)
    head = linear.get_output_embeddings()
    from transformers.pytorch_utils import Conv1D

    expected = {f"{name}.base_layer" for name, module in linear.named_modules()
                if isinstance(module, (nn.Linear, Conv1D)) and module is not head}
    assert adapted == expected and expected


def test_targets_by_name() -> None:
    model = tiny_model("llama")
    assert resolve_targets(model, ("q_proj", "v_proj")) == ("q_proj", "v_proj")
    assert resolve_targets(model, ("W_pack",)) == ("q_proj", "k_proj", "v_proj")
    assert resolve_targets(tiny_model("bloom"), ("query_key_value",)) == ("query_key_value",)
    with pytest.raises(ConfigError) as caught:
        resolve_targets(model, ("q_pro",))
    assert '"q_proj"' in str(caught.value) and "down_proj" in str(caught.value)
    assert linear_names(tiny_model("gpt2")) == ["c_attn", "c_fc", "c_proj"]


def test_additional_target_must_exist(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="embed_tokens"):
        load(tiny_base, AdapterConfig(additional_target="embed_token"))


def trained_adapter(base: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = load(base)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    ModelSaver(load_tokenizer(ModelConfig(model_name_or_path=str(base))), None, str(base)).save(model, folder)
    return folder


@pytest.fixture
def two_adapters(tiny_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    return trained_adapter(tiny_base, tmp_path / "a", 1), trained_adapter(tiny_base, tmp_path / "b", 2)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 9, 30, 77]])).logits


def test_adapters_stack(tiny_base: Path, two_adapters: tuple[Path, Path]) -> None:
    """a,b: a is merged, b goes on; with create_new_adapter both are merged and a third starts at zero."""
    names = ",".join(map(str, two_adapters))
    going_on = load(tiny_base, adapter_name_or_path=names)
    new = load(tiny_base, LORA.model_copy(update={"create_new_adapter": True}), adapter_name_or_path=names)
    torch.testing.assert_close(logits(new), logits(going_on), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load(tiny_base, trainable=False, adapter_name_or_path=names)),
                               logits(going_on), rtol=0, atol=1e-6)
    assert count_parameters(going_on)[0] == count_parameters(new)[0] > 0
    states = [{n: p for n, p in m.named_parameters() if p.requires_grad and "lora_B" in n} for m in (going_on, new)]
    assert all(p.abs().sum() > 0 for p in states[0].values()) and all(p.abs().sum() == 0 for p in states[1].values())


def test_adapter_folder_is_put_in_front(tiny_base: Path, two_adapters: tuple[Path, Path]) -> None:
    folder = two_adapters[0].parent
    model = load(tiny_base, adapter_folder=str(folder), adapter_name_or_path="a")
    torch.testing.assert_close(logits(model), logits(load(tiny_base, adapter_name_or_path=str(folder / "a"))))


def test_an_adapter_needs_lora_to_go_on(tiny_base: Path, two_adapters: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="cannot go on from an adapter"):
        load(tiny_base, FULL, adapter_name_or_path=str(two_adapters[0]))


def test_several_adapters_do_not_merge_into_quantised_weights(
    tiny_base: Path, two_adapters: tuple[Path, Path],
) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match="quantised base"):
        load(tiny_base, bits=4, adapter_name_or_path=",".join(map(str, two_adapters)))


OTHER_SHAPES = [{"hidden_size": 48, "head_dim": 8, "num_attention_heads": 6}, {"family": "gpt2"},
                {"num_hidden_layers": 1}, {"num_hidden_layers": 3}]


@pytest.mark.parametrize(("other", "recorded"), [
    ({"seed": 9}, True), *((other, recorded) for other in OTHER_SHAPES for recorded in (True, False))], ids=str)
def test_an_adapter_on_the_wrong_base_is_refused(
    other: dict[str, object], recorded: bool, two_adapters: tuple[Path, Path], tmp_path: Path,
) -> None:
    base = save_tiny(tmp_path / "other", **other)
    if not recorded:  # as plain peft writes adapters; equal shapes could not be told apart then
        (two_adapters[0] / "danlu_base.json").unlink()
    with pytest.raises(UserError) as caught:
        load(base, adapter_name_or_path=str(two_adapters[0]))
    assert "adapter" in str(caught.value) and "base" in str(caught.value)


def test_another_copy_of_the_same_base_is_the_same_base(
    tiny_base: Path, two_adapters: tuple[Path, Path], tmp_path: Path,
) -> None:
    """Moved, rounded to bfloat16 and sharded anew: still the base the adapter belongs to."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    (copy / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(copy, max_shard_size="30KB")
    assert len(list(copy.glob("*.safetensors"))) > 1
    load(copy, adapter_name_or_path=str(two_adapters[0]))


# ---- freeze

@pytest.mark.parametrize("family", FAMILIES)
def test_last_and_first_layers(family: str) -> None:
    model = tiny_model(family)
    stack, layers = layer_stack(model)
    assert layers == 2
    last = train_some_layers(model, AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=1))
    assert last and all(name.startswith(f"{stack}.1.") for name in last)
    first = train_some_layers(model, AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=-1))
    assert len(first) == len(last) and all(name.startswith(f"{stack}.0.") for name in first)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(first)


def test_modules_inside_and_outside_the_layers() -> None:
    model = tiny_model()
    chosen = train_some_layers(model, AdapterConfig(
        finetuning_type="freeze", freeze_trainable_layers=2, freeze_trainable_modules="self_attn",
        freeze_extra_modules="lm_head,norm"))
    assert set(chosen) == {n for n, _ in model.named_parameters()
                           if "self_attn" in n or n in ("lm_head.weight", "model.norm.weight")}
    for keys, hint in (({"freeze_trainable_modules": "self_atn"}, "self_attn"),
                       ({"freeze_extra_modules": "embed"}, "embed_tokens"),
                       ({"freeze_trainable_layers": 5}, "the model has 2")):
        with pytest.raises(ConfigError, match=hint):
            train_some_layers(model, AdapterConfig(finetuning_type="freeze", **keys))


def test_rope_scaling_stretches_the_context(tiny_base: Path) -> None:
    config = ModelConfig(model_name_or_path=str(tiny_base), rope_scaling="linear")
    model = load_model(config, QuantizationConfig(), LORA, tokenizer=load_tokenizer(config), trainable=True,
                       compute_dtype=torch.float32, max_length=600)
    parameters = model.get_base_model().config.rope_parameters
    assert parameters["factor"] == 3.0 and model.get_base_model().config.max_position_embeddings == 768
    with pytest.raises(ConfigError, match="no rotary positions"):
        gpt2 = ModelConfig(model_name_or_path=str(save_tiny(tiny_base.parent / "gpt2", "gpt2")), rope_scaling="yarn")
        load_model(gpt2, QuantizationConfig(), LORA, tokenizer=load_tokenizer(gpt2), trainable=True,
                   compute_dtype=torch.float32)
