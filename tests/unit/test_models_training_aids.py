"""What training adds to a model: parameter groups, embedding noise, checkpointing, number formats; sizes and cards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from danlu.core.errors import ConfigError
from danlu.core.stream import Example, flatten
from danlu.losses.vocabulary_sweep import live_logit_bytes
from danlu.models.adapters import new_adapter
from danlu.models.card import CardFacts, write_model_card
from danlu.models.checkpointing import set_checkpointing
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.freeze import train_all
from danlu.models.groups import decaying_names, optimizer_groups
from danlu.models.load import count_parameters, load_model
from danlu.models.memory import ModelCounts, count_model, estimate_memory
from danlu.models.neftune import add_embedding_noise
from danlu.models.packed_lm import PackedLM
from danlu.models.precision import resolve_inference_dtype, resolve_precision
from danlu.models.proof import base_of
from danlu.models.stream_tensors import StreamTensors
from danlu.models.tokenizer import load_tokenizer
from tests.tiny import FAMILIES, save_tiny, tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def stream(*lengths: int) -> StreamTensors:
    rng = np.random.default_rng(0)
    return StreamTensors.from_stream(flatten([
        Example(rng.integers(5, 300, n), np.ones(n, bool), index=i) for i, n in enumerate(lengths)]))


# ---- parameter groups

@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_do_not_decay(family: str) -> None:
    model = tiny_model(family)
    decaying = decaying_names(model)
    for name, parameter in model.named_parameters():
        assert (name in decaying) == (parameter.ndim > 1), name


def test_groups_hold_every_trainable_weight_once() -> None:
    model = tiny_model()
    train_all(model)
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = optimizer_groups(model, learning_rate=0.1, weight_decay=0.01)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.1, 0.01), (0.1, 0.0)}


def test_lora_plus_gives_b_a_larger_rate() -> None:
    """ratio 16: A learns at 0.1, B at 1.6, an embedding's adapter at 1e-6."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapted = new_adapter(model, AdapterConfig(lora_target="q_proj,embed_tokens"), "base")
    groups = optimizer_groups(adapted, learning_rate=0.1, weight_decay=0.0, loraplus_lr_ratio=16.0)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            expected = 1e-6 if "lora_embedding" in name else 1.6 if "lora_B" in name else 0.1
            assert rate[id(parameter)] == pytest.approx(expected), name
    assert {group["lr"] for group in groups} == {0.1, 1.6, 1e-6}


# ---- embedding noise

def seen_by_layers(policy: PackedLM, batch: StreamTensors) -> torch.Tensor:
    seen = []
    body = base_of(policy.model).base_model
    layers = body.layers if hasattr(body, "layers") else body.h
    handle = layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(
        (args[0] if args else kwargs["hidden_states"]).detach()), with_kwargs=True)
    policy(batch)
    handle.remove()
    return seen[-1]


def test_noise_is_scaled_by_the_length_of_each_segment() -> None:
    """alpha 5, d 32: a segment of 4 tokens gets +-5/sqrt(128), one of 100 tokens +-5/sqrt(3200), a fifth of that."""
    policy = PackedLM(tiny_model().eval())
    batch = stream(4, 100)
    policy(batch)  # the first call decides the layout
    clean = seen_by_layers(policy, batch)
    noise = add_embedding_noise(policy, 5.0)
    assert noise is not None
    torch.testing.assert_close(seen_by_layers(policy, batch), clean)  # evaluation: no noise
    policy.train()
    torch.manual_seed(0)
    difference = (seen_by_layers(policy, batch) - clean)[0]
    for rows, length in ((difference[:4], 4), (difference[4:], 100)):
        bound = 5.0 / (length * 32) ** 0.5
        assert 0.9 * bound < rows.abs().max() <= bound * (1 + 1e-4)
        assert abs(rows.mean()) < 4 * bound / (3 * rows.numel()) ** 0.5  # uniform: deviation bound / sqrt(3)
    noise.remove()
    torch.testing.assert_close(seen_by_layers(policy, batch), clean)


def test_noise_in_a_padded_batch_has_the_scale_of_each_row() -> None:
    policy = PackedLM(tiny_model("bloom").eval())
    batch = stream(4, 100)
    policy(batch)
    assert policy.report().layout == "padded"
    embedding = base_of(policy.model).get_input_embeddings()
    seen: list[torch.Tensor] = []
    handle = embedding.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    policy(batch)
    handle.remove()
    add_embedding_noise(policy, 5.0)
    embedding.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    policy.train()(batch)
    short, long = (seen[1] - seen[0]).abs().amax(dim=(1, 2))
    assert short == pytest.approx(5 / (4 * 32) ** 0.5, rel=0.05)
    assert long == pytest.approx(5 / (100 * 32) ** 0.5, rel=0.05)


def test_no_alpha_no_noise() -> None:
    assert add_embedding_noise(PackedLM(tiny_model()), None) is None
    assert add_embedding_noise(PackedLM(tiny_model()), 0.0) is None


# ---- checkpointing

@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "gpt_neox"])
def test_checkpointing_changes_no_gradient(family: str, method: str, tmp_path: Path) -> None:
    config = ModelConfig(model_name_or_path=str(save_tiny(tmp_path, family)))
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = load_model(config, QuantizationConfig(), AdapterConfig(finetuning_type=method, lora_dropout=0.0),
                           tokenizer=load_tokenizer(config), trainable=True, compute_dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        assert set_checkpointing(model, enabled) is enabled
        PackedLM(model)(stream(7, 3, 12)).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


# ---- number formats

def test_precision_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resolve_precision(bf16=False, fp16=False, device=CPU)
    assert (plain.compute_dtype, plain.autocast, plain.scaler, plain.notice) == (torch.float32, False, False, "")
    assert resolve_precision(bf16=True, fp16=False, device=CPU).autocast
    pure = resolve_precision(bf16=False, fp16=False, pure_bf16=True, device=CPU)
    assert pure.compute_dtype == torch.bfloat16 and not pure.autocast
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast})
        half = resolve_precision(bf16=False, fp16=True, device=CPU)
        assert half.compute_dtype == dtype and not half.scaler and "fp16 needs a GPU" in half.notice
    with pytest.raises(ConfigError, match="both on"):
        resolve_precision(bf16=True, fp16=True, device=CPU)


def test_precision_on_a_gpu() -> None:
    half = resolve_precision(bf16=False, fp16=True, device=GPU)
    assert half.compute_dtype == torch.float16 and half.autocast and half.scaler


def test_inference_dtype() -> None:
    assert resolve_inference_dtype("auto", CPU) == torch.float32
    assert resolve_inference_dtype("bfloat16", CPU) == torch.bfloat16


# ---- sizes

@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_without_weights_equal_those_of_the_loaded_model(family: str, method: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path, family)
    (tmp_path / "model.safetensors").rename(tmp_path / "moved")
    config, adapter = ModelConfig(model_name_or_path=str(base)), AdapterConfig(finetuning_type=method)
    counts = count_model(config, adapter)
    (tmp_path / "moved").rename(tmp_path / "model.safetensors")
    loaded = load_model(config, QuantizationConfig(), adapter, tokenizer=load_tokenizer(config), trainable=True,
                        compute_dtype=torch.float32)
    assert (counts.trainable, counts.total) == count_parameters(loaded)


def test_memory_by_hand() -> None:
    """7 B with LoRA r16 as published: 6.525 B in layers, 0.545 B embedding and head each, 40 M in the adapter.

    bf16 LoRA: 2 (6.525 + 1.09) = 15.23 GB frozen; 0.04 B at 4 (master) + 2 (copy) + 4 + 8 = 18 bytes = 0.72 GB.
    NF4 with double quantisation: 0.5159 bytes a weight of the layers = 3.366 GB, and 2.18 GB of embeddings.
    """
    counts = ModelCounts(total=7_655_000_000, trainable=40_000_000, quantizable=6_525_000_000, layers=28, hidden=3584,
                         widths=6 * 3584 + 2 * 3584 + 2 * 512 + 4 * 18944, vocabulary=152_064)
    lora = AdapterConfig()
    plain = estimate_memory(counts, QuantizationConfig(), lora, compute_dtype=torch.bfloat16, tokens=4096,
                            logit_bytes=2**20)
    assert plain.weights == pytest.approx(15.23e9 + 0.24e9)
    assert plain.gradients == 160_000_000 and plain.optimizer == 320_000_000
    assert plain.activations == 4096 * 2 * 28 * (8 * 3584 + 1024 + 4 * 18944)
    assert plain.logits == 2**20
    assert plain.checkpoint == 480_000_000 and plain.final == 160_000_000
    packed = estimate_memory(counts, QuantizationConfig(quantization_bit=4), lora, compute_dtype=torch.bfloat16,
                             tokens=4096, logit_bytes=2**20, checkpointing=True)
    assert packed.weights == pytest.approx(0.51587 * 6.525e9 + 2 * 1.09e9 + 0.24e9, rel=1e-3)
    assert packed.activations == 4096 * 2 * (28 * 3584 + 8 * 3584 + 1024 + 4 * 18944)
    full = estimate_memory(
        ModelCounts(7_615_000_000, 7_615_000_000, 6_525_000_000, 28, 3584, 105_000, 152_064), QuantizationConfig(),
        AdapterConfig(finetuning_type="full"), compute_dtype=torch.bfloat16, tokens=0, logit_bytes=0)
    assert full.total == 18 * 7_615_000_000  # 4 master + 2 copy + 4 gradient + 8 Adam


def test_weights_take_what_is_estimated(tmp_path: Path) -> None:
    """The estimate against the bytes of a loaded model's storage."""
    base = save_tiny(tmp_path, hidden_size=64, intermediate_size=128)
    config, adapter = ModelConfig(model_name_or_path=str(base)), AdapterConfig(lora_rank=4)
    model = load_model(config, QuantizationConfig(), adapter, tokenizer=load_tokenizer(config), trainable=True,
                       compute_dtype=torch.float32)
    estimate = estimate_memory(count_model(config, adapter), QuantizationConfig(), adapter,
                               compute_dtype=torch.float32, tokens=0, logit_bytes=0)
    assert estimate.weights == sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(("keys", "is_trained"), [
    ({"finetuning_type": "full"}, True), ({}, False), ({"lora_target": ("lm_head",)}, True),
    ({"additional_target": ("lm_head",)}, True), ({"finetuning_type": "freeze"}, False)])
def test_a_head_counts_as_trained_where_something_of_it_trains(
    tmp_path: Path, keys: dict[str, Any], is_trained: bool,
) -> None:
    config = ModelConfig(model_name_or_path=str(save_tiny(tmp_path, tie_word_embeddings=False)))
    assert count_model(config, AdapterConfig(**keys)).trains_head is is_trained


def test_logits_alive_by_hand() -> None:
    """3,000 rows, 152,064 words on a processor. A head that trains: four tiles of 750 rows. A frozen one: three of
    1,000 rows, whose blocks of 8 MiB hold at most 2,097 words: 73 blocks, of 2,084 words or, in whole 64s, 2,112."""
    cpu = torch.device("cpu")
    assert live_logit_bytes(3000, 152_064, cpu, is_trained=True) == 750 * 152_064 * 4
    assert live_logit_bytes(3000, 152_064, cpu, is_trained=False) == 1000 * 2112 * 4
    assert live_logit_bytes(0, 152_064, cpu, is_trained=True) == 0


# ---- model card

def test_card_has_readable_front_matter(tmp_path: Path) -> None:
    write_model_card(tmp_path, CardFacts(
        base="org/base", stage="sft", method="lora", datasets=("alpaca_zh",), settings={"learning_rate": 1e-4},
        metrics={"eval_loss": 1.25}))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base" and front["library_name"] == "peft" and "sft" in front["tags"]
    for part in ("| learning_rate | 0.0001 |", "| eval_loss | 1.25 |", "`alpaca_zh`", "danlu 0", f"# {tmp_path.name}"):
        assert part in text


def test_card_keeps_its_title_in_a_folder_of_passing_name(tmp_path: Path) -> None:
    write_model_card(tmp_path, CardFacts(base="org/base", title="my-assistant"))
    assert "\n# my-assistant\n" in (tmp_path / "README.md").read_text(encoding="utf-8")
