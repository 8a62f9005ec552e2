"""A lean body keeps to its families, and gives what the whole body gives: also in bf16, compiled or checkpointed."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from danlu.models import lean_body
from danlu.models.lean_body import LeanBody, is_fused
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of, body_of
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


def test_another_norm_keeps_the_body_whole() -> None:
    base = tiny_model()
    base.model.layers[1].input_layernorm = nn.LayerNorm(base.config.hidden_size)
    assert LeanBody.of(base, body_of(base)) is None


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gpt2", "bloom"])
def test_other_families_are_not_served(family: str) -> None:
    base = tiny_model(family)
    assert LeanBody.of(base, base_of(base).base_model) is None
