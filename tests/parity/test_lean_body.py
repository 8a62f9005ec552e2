"""A lean body keeps to its families, and gives what the whole body gives: also in bf16, compiled or checkpointed."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from danlu.core.stream import Example
from danlu.models import lean_body, product_attention
from danlu.models.lean_body import LeanBody, is_fused
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of, body_of
from danlu.models.segments import Layout
from danlu.models.stream_tensors import StreamTensors
from tests.parity.test_last_layer import MODELS, stream
from tests.parity.test_packed_families import sharpen
from tests.tiny import tiny_model


def gradients(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, lean: bool, autocast: bool) -> dict[str, Tensor]:
    """Return the gradients of all weights that train."""
    monkeypatch.setattr(lean_body, "FAMILIES", lean_body.FAMILIES if lean else ())
    packed = PackedLM(model).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = packed(stream())
    loss.backward()
    assert (packed._plan is not None and packed._plan.lean is not None) == lean
    monkeypatch.undo()
    assert loss.isfinite()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the distance of two gradients over the norm of the second, all weights together."""
    assert one.keys() == other.keys()
    apart, size = (sum(float(part.pow(2).sum()) for part in parts)
                   for parts in ((one[name] - other[name] for name in one), other.values()))
    return float((apart / size) ** 0.5)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_bf16_is_about_as_far_from_fp32_as_stock_layers_are(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All families together: rounding strikes a tiny model with large adapters at random, 1 to 7 % of the gradient."""
    def made(family: str) -> Any:
        model = sharpen(MODELS[family]())
        torch.manual_seed(0)
        keys = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(model, keys) if adapter else model

    stock, ours = 0.0, 0.0
    for family in MODELS:
        exact = gradients(made(family), monkeypatch, lean=False, autocast=False)
        stock += far(gradients(made(family), monkeypatch, lean=False, autocast=True), exact)
        ours += far(gradients(made(family), monkeypatch, lean=True, autocast=True), exact)
    assert 0 < ours <= 2 * stock


@pytest.mark.parametrize("way", ["fp32", "autocast", "pure bf16"])
def test_long_segments_go_through_the_fused_call(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 768 tokens attention is torch's own, which takes one dtype for queries, keys and values."""
    dtype = torch.bfloat16 if way == "pure bf16" else torch.float32
    ids = np.random.default_rng(0).integers(3, 320, product_attention.MAX_TOKENS + 5)
    data = StreamTensors.of([Example(ids, np.ones(len(ids), np.bool_))])
    found = []
    for families in (lean_body.FAMILIES, ()):
        monkeypatch.setattr(lean_body, "FAMILIES", families)
        packed = PackedLM(tiny_model("qwen3", max_position_embeddings=1024).to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = packed(data)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in packed.parameters())
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1], rel=1e-5 if way == "fp32" else 1e-2)


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "tree"])
def test_a_rounded_layout_changes_no_number(shared: bool) -> None:
    """Six and seven tokens behind one prompt of 17, then seven alone: 54 tokens, 37 computed, both become 64."""
    make = np.random.default_rng(0)
    ids = [make.integers(3, 300, n) for n in (17, 6, 7, 7)]
    pair = Example(np.concatenate([ids[0], ids[1], ids[0], ids[2]]), np.ones(47, np.bool_), lengths=(23, 24))
    data = StreamTensors.of([pair, Example(ids[3], np.ones(7, np.bool_))])
    layout = Layout.of(data, shared=shared)
    assert len(layout.input_ids) == (37 if shared else 54)
    found = []
    for one in (layout, layout.rounded(32)):
        model = tiny_model("llama")
        lean = LeanBody.of(base_of(model), body_of(base_of(model)))
        assert lean is not None
        hidden = lean.hidden(one, data.loss_rows, cut=False)
        hidden.square().sum().backward()
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(layout.rounded(32).input_ids) == sum(layout.rounded(32).segments.lengths) == 64
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_products_of_a_16_bit_pass_have_rounded_numbers_of_rows() -> None:
    packed = PackedLM(tiny_model("llama"))
    data = StreamTensors.of([Example(np.arange(n) + 3, np.ones(n, np.bool_)) for n in (40, 13, 5)])
    packed(data)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Rows() as rows:
            packed(data, output="hidden")
        assert rows.seen and all(n % 32 == 0 for n in rows.seen) == autocast


def test_who_listens_to_the_embedding_sees_the_plain_stream() -> None:
    """NEFTune tells sequences apart by their lengths."""
    packed, seen = PackedLM(tiny_model("llama")), []
    data = StreamTensors.of([Example(np.arange(n) + 3, np.ones(n, np.bool_)) for n in (40, 13, 5)])
    packed(data)
    base_of(packed.model).get_input_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    with torch.autocast("cpu", torch.bfloat16):
        packed(data)
    assert seen == [58]


class Rows(TorchDispatchMode):
    """Collects how many rows each matrix product has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mm:
            self.seen.add(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def test_layers_are_compiled_or_fused_but_not_both() -> None:
    layer, device = tiny_model().model.layers[0], torch.device("cpu")
    assert is_fused(layer, device)
    assert not is_fused(layer, torch.device("cuda"))
    layer.compile()
    assert not is_fused(layer, device)


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, out: out)


@pytest.mark.parametrize(("path", "served"), [
    ("", False), ("layers.0", False), ("layers.1.self_attn", False), ("layers.1.input_layernorm", False),
    ("layers.0.mlp", True), ("layers.0.self_attn.q_proj", True), ("embed_tokens", True), ("norm", True)])
def test_a_hook_on_what_would_be_passed_by_keeps_the_body_whole(path: str, served: bool) -> None:
    """Modules that a lean body calls may have hooks; those it takes apart may not."""
    base = tiny_model()
    hook(base.model.get_submodule(path))
    assert (LeanBody.of(base, body_of(base)) is not None) == served


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_windows_are_those_that_stock_layers_hand_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama's config may carry a Mistral's key, which its layers do not read; segments are longer than the window."""
    stock = MODELS[family.lower()]().eval()
    stock.config.sliding_window = 3
    for layer in stock.model.layers if family in ("Qwen2", "Qwen3") else ():
        layer.self_attn.sliding_window = 3
    found = []
    for families in (lean_body.FAMILIES, ()):
        monkeypatch.setattr(lean_body, "FAMILIES", families)
        found.append(PackedLM(stock)(stream()).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_another_norm_keeps_the_body_whole() -> None:
    base = tiny_model()
    base.model.layers[1].input_layernorm = nn.LayerNorm(base.config.hidden_size)
    assert LeanBody.of(base, body_of(base)) is None


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gpt2", "bloom"])
def test_other_families_are_not_served(family: str) -> None:
    base = tiny_model(family)
    assert LeanBody.of(base, base_of(base).base_model) is None
