"""The last layer run on the rows of a loss alone: the same loss and gradients, and only where it pays."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from danlu.core.stream import Example
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from tests.parity.test_packed_families import OTHERS, one_by_one, other_model, sharpen
from tests.tiny import tiny_model

MODELS = {"llama": lambda: tiny_model("llama"), "qwen3": lambda: tiny_model("qwen3"),
          "qwen2": lambda: other_model("qwen2", OTHERS["qwen2"]),
          "mistral": lambda: other_model("mistral", OTHERS["mistral"])}


def stream(share: float = 0.4) -> StreamTensors:
    """A pair behind a prompt of 20 and three segments alone; some rows carry loss."""
    rng, prompt = np.random.default_rng(0), np.random.default_rng(1).integers(3, 320, 20)
    ids = [np.concatenate([prompt, rng.integers(3, 320, n)]) for n in (9, 6)]
    rest = [rng.integers(3, 320, n) for n in (30, 1, 8)]
    made = [Example(np.concatenate(ids), rng.random(55) < share, lengths=(29, 26)),
            *(Example(one, rng.random(len(one)) < share) for one in rest)]
    return StreamTensors.of(made)


class Rows:
    """Notes how many positions the last layer's MLP was given."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        base_of(model).base_model.layers[-1].mlp.register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
        self.count = args[0].shape[:-1].numel()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", MODELS)
def test_loss_and_gradients_stay(family: str, adapter: bool) -> None:
    model, data = sharpen(MODELS[family]()), stream()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    expected = one_by_one(model, data)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed, seen = PackedLM(model), Rows(model)
    actual = packed(data)
    actual.backward()
    assert seen.count == data.num_rows < data.num_tokens
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = max(grad.abs().max() for grad in wanted.values())
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert (parameter.grad - wanted[name]).abs().max() <= 1e-5 * scale, name


def test_a_reward_model_reads_one_row_a_segment() -> None:
    scorer = RewardLM(PackedLM(tiny_model()))
    scorer(stream())
    seen = Rows(scorer.lm.model)
    scorer(stream())
    assert seen.count == 5


def tokens_of(model: nn.Module, data: StreamTensors) -> tuple[int, int]:
    """Return the positions that the last MLP was given, and all that were computed."""
    packed, seen = PackedLM(model).train(), Rows(model)
    packed(data)
    assert data.tree is not None
    return seen.count, data.tree.num_tokens


@pytest.mark.parametrize(("model", "share"), [
    (tiny_model(num_hidden_layers=12), 0.4),  # of twelve layers one MLP is 5 %, and not all of it is saved
    (tiny_model(), 0.95),  # nearly every row carries loss
    (tiny_model("gemma"), 0.4),  # scales its embeddings: not a family that is served
], ids=["deep", "dense", "other family"])
def test_left_whole_where_it_does_not_pay(model: nn.Module, share: float) -> None:
    seen, computed = tokens_of(model, stream(share))
    assert seen == computed


def test_checkpointing_and_hooks_keep_the_layer_whole() -> None:
    kept = tiny_model()
    kept.gradient_checkpointing_enable({"use_reentrant": False})
    hooked = tiny_model()
    hooked.model.layers[-1].register_forward_hook(lambda module, args, out: out)
    for model in (kept, hooked):
        seen, computed = tokens_of(model, stream())
        assert seen == computed


def test_no_row_at_all_gives_zero() -> None:
    """A micro-batch without loss reaches every parameter with a gradient of 0, as other ranks expect."""
    model = tiny_model()
    data = StreamTensors.of([Example(np.arange(3, 12), np.zeros(9, bool))])
    loss = PackedLM(model)(data)
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())
