"""torch_compile: losses and gradients of the plain model, and one compilation for batches of every shape."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from danlu.core.stream import Example
from danlu.models import lean_body
from danlu.models.checkpointing import set_checkpointing
from danlu.models.compiling import compile_layers
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import tiny_model

LAYERS = 9  # more than torch compiles anew for one piece of code


def batch(seed: int) -> StreamTensors:
    """One to five examples of any lengths, each second one a prompt with two answers."""
    rng, made = np.random.default_rng(seed), []
    for index in range(int(rng.integers(1, 6))):
        prompt, answers = rng.integers(3, 320, int(rng.integers(9, 30))), rng.integers(2, 20, 1 + index % 2)
        segments = [np.concatenate([prompt, rng.integers(3, 320, n)]) for n in answers]
        ids = np.concatenate(segments)
        made.append(Example(ids, rng.random(len(ids)) < 0.5, lengths=tuple(map(len, segments)), index=index))
    return StreamTensors.of(made)


def model(method: str) -> Any:
    made = tiny_model(num_hidden_layers=LAYERS, hidden_size=16, intermediate_size=32)
    if method == "lora":
        torch.manual_seed(1)
        made = get_peft_model(made, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    set_checkpointing(made, method == "checkpointing")
    return PackedLM(made).train()


@pytest.mark.parametrize(("method", "backend"), [("full", "aot_eager"), ("lora", "eager"), ("checkpointing", "eager")])
def test_compiled_layers_are_the_model(method: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first batch, seven of other shapes compile nothing more, with and without gradients."""
    plain, compiled = model(method), model(method)
    compiled(batch(99))  # the model proves itself uncompiled, as in a run: attention is looked up by name
    with monkeypatch.context() as patch:
        patch.setattr(lean_body, "FAMILIES", ())  # stock layers, as those that are compiled
        plain(batch(99))
    torch._dynamo.reset()
    counters.clear()
    assert compile_layers(compiled, backend=backend, mode=None) == LAYERS
    seen: list[Counter[str]] = []
    for seed in range(8):
        data = batch(seed)
        with torch.no_grad():
            torch.testing.assert_close(compiled(data, output="hidden"), plain(data, output="hidden"))
        found, expected = compiled(data), plain(data)
        found.backward()
        expected.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        seen.append(Counter(counters["stats"]))
    scale = max(one.grad.abs().max() for one in plain.parameters() if one.grad is not None)
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).abs().max() <= 1e-5 * scale, name
    assert seen[0]["unique_graphs"] > 0 and seen[1:] == seen[1:2] * 7
    assert seen[-1]["unique_graphs"] <= 2 * seen[0]["unique_graphs"] and not counters["recompile_limit"]
    torch._dynamo.reset()
