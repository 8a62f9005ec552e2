"""Packed equals padded: loss and every gradient of stock models, family by family, against one forward a segment."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from danlu.core.stream import Example, flatten
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import FAMILIES, tiny_model

LENGTHS = (20, 1, 8, 33, 8, 2)
BASIC = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256, "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {**BASIC, "sliding_window": 8},
    "qwen2": {**BASIC, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma3_text": {**BASIC, "head_dim": 8, "sliding_window": 8},
    "phi3": BASIC,
    "cohere2": {**BASIC, "sliding_window": 8, "logit_scale": 0.25},
    "granite": {**BASIC, "logits_scaling": 4.0},
    "gpt_oss": {**BASIC, "sliding_window": 8, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**BASIC, "num_local_experts": 4},
}
PLAIN: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 320},
    "falcon": {**BASIC, "alibi": True},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": 8, "vocab_size": 320},
    "llama4_text": {**BASIC, "head_dim": 8, "attention_chunk_size": 8, "intermediate_size_mlp": 64,
                    "num_local_experts": 2},
}

REASONS = {
    "mamba": "has layers of type linear_attention", "falcon": "brings its own attention",
    "gpt_neo": "brings its own attention", "llama4_text": "does not part body and head",
}


def stream() -> StreamTensors:
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(3, 320, n), rng.random(n) < 0.6, rng.random(n).astype(np.float32), index=i)
                for i, n in enumerate(LENGTHS)]
    return StreamTensors.from_stream(flatten(examples))


def other_model(family: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**settings))


def sharpen(model: PreTrainedModel) -> PreTrainedModel:
    """Make attention matter: weights of 0.02 leave a random model nearly blind to its context."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def one_by_one(model: PreTrainedModel, data: StreamTensors) -> torch.Tensor:
    """Sum the weighted cross-entropy of each segment, forwarded alone: no padding, no packing, no shared mask."""
    total, at = torch.zeros(()), 0
    for length in data.lengths:
        inside = (data.loss_rows >= at) & (data.loss_rows < at + length)
        logits = model(input_ids=data.input_ids[None, at:at + length], use_cache=False).logits[0]
        losses = F.cross_entropy(logits[data.loss_rows[inside] - at], data.loss_targets[inside], reduction="none")
        total = total + (losses * data.loss_weights[inside]).sum()
        at += length
    return total


def both_ways(
    model: PreTrainedModel, data: StreamTensors,
) -> tuple[PackedLM, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the packed model, its loss, the loss segment by segment and that one's gradients; the model keeps its own.
    """
    expected = one_by_one(model, data)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed = PackedLM(model)
    actual = packed(data)
    actual.backward()
    return packed, actual, expected, wanted


def check(model: PreTrainedModel, layout: str, head: str = "tiled") -> None:
    data = stream()
    packed, actual, expected, wanted = both_ways(model, data)
    assert (packed.report().layout, packed.report().head) == (layout, head), packed.report()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = max(grad.abs().max() for grad in wanted.values())
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert (parameter.grad - wanted[name]).abs().max() <= 1e-5 * scale, name
    with torch.no_grad():
        logps = packed(data, output="logps")
    assert -(logps * data.loss_weights).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_test_family(family: str) -> None:
    check(sharpen(tiny_model(family)), "padded" if family == "bloom" else "packed")


@pytest.mark.parametrize("family", OTHERS)
def test_windows_sinks_experts_and_logit_scales(family: str) -> None:
    check(sharpen(other_model(family, OTHERS[family])), "packed")


@pytest.mark.parametrize("family", PLAIN)
def test_other_architectures_take_the_padded_path(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = other_model(family, PLAIN[family])
    # a sharpened recurrence amplifies the last bit of float32 from step to step
    model = model.eval() if family == "mamba" else sharpen(model)
    check(model, "padded", "model" if family == "llama4_text" else "tiled")
    said = f"notice: {type(model).__name__} {REASONS[family]}: taking the slower plain path\n"
    assert capsys.readouterr().err.count(said) == 1


def test_float64_agrees_to_twelve_digits() -> None:
    """Loss and every gradient of GPT-2, which takes no float32 detour; the norms and rotations of a Llama do."""
    model, data = sharpen(tiny_model("gpt2").double()), stream()
    packed, actual, expected, wanted = both_ways(model, data)
    assert (packed.report().layout, actual.dtype) == ("packed", torch.float64)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    floor = 1e-14 * torch.stack([grad.norm() for grad in wanted.values()]).norm()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - wanted[name]).norm() <= 1e-12 * wanted[name].norm() + floor, name
