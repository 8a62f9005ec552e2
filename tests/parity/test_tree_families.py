"""A shared prompt computed once: loss and every gradient, family by family, against one forward a segment."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from danlu.core.stream import Example
from danlu.models.neftune import EmbeddingNoise
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of, randomness
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from tests.parity.test_packed_families import OTHERS, one_by_one, other_model, sharpen
from tests.tiny import FAMILIES, tiny_model

GROUPS = ((20, (4, 9)), (9, (3, 3, 1, 6)), (0, (7,)), (12, (5, 5)))


def stream() -> StreamTensors:
    """A pair, four ranked answers, a segment alone, a pair of equal lengths; prompts carry loss here and there."""
    rng, made = np.random.default_rng(0), []
    for index, (prompt, answers) in enumerate(GROUPS):
        shared = rng.integers(3, 320, prompt)
        ids = np.concatenate([np.concatenate([shared, rng.integers(3, 320, n)]) for n in answers])
        made.append(Example(ids, rng.random(len(ids)) < 0.6, rng.random(len(ids)).astype(np.float32),
                            tuple(prompt + n for n in answers), index))
    return StreamTensors.of(made)


class Width:
    """Notes how many tokens the embedding was last asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        base_of(model).get_input_embeddings().register_forward_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        self.tokens = args[0].numel()


def check(model: Any, is_shared: bool = True) -> None:
    data = stream()
    expected = one_by_one(model, data)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed, width = PackedLM(model), Width(model)
    actual = packed(data)
    assert data.tree is not None and data.num_tokens == 143 and data.tree.num_tokens == 143 - 20 - 27 - 12
    if is_shared:
        assert packed.report().apart == "" and width.tokens == data.tree.num_tokens
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = max(grad.abs().max() for grad in wanted.values())
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert (parameter.grad - wanted[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_test_family(family: str) -> None:
    check(sharpen(tiny_model(family)), is_shared=family != "bloom")


@pytest.mark.parametrize("family", OTHERS)
def test_windows_sinks_experts_and_logit_scales(family: str) -> None:
    check(sharpen(other_model(family, OTHERS[family])))


def test_rewards_are_those_of_segments_apart() -> None:
    """The last token of each answer keeps a place of its own, also where one answer begins another."""
    rng = np.random.default_rng(1)
    long = rng.integers(3, 320, 20)
    data = StreamTensors.of([Example(np.concatenate([long, long[:15], rng.integers(3, 320, 5)]), np.ones(40, bool),
                                     lengths=(20, 15, 5))])
    scorer = RewardLM(PackedLM(sharpen(tiny_model("qwen3"))))
    width = Width(scorer.lm.model)
    rewards = scorer(data).tolist()
    assert width.tokens == 40 - 14
    alone = [scorer(StreamTensors.of([Example(ids.numpy(), np.ones(len(ids), bool))])).item()
             for ids in data.input_ids.split([20, 15, 5])]
    assert rewards == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_checkpointing_replays_the_tree() -> None:
    plain, kept = (PackedLM(sharpen(tiny_model()).train()) for _ in "ab")
    kept.model.gradient_checkpointing_enable({"use_reentrant": False})
    data, other = stream(), StreamTensors.of([Example(np.arange(3, 12), np.ones(9, bool))])
    for packed in (plain, kept):
        loss = packed(data)
        packed(other)
        loss.backward()
    for one, again in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(one.grad, again.grad)


def lora(dropout: float) -> PackedLM:
    torch.manual_seed(0)
    return PackedLM(get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=dropout)))


def test_dropout_draws_a_mask_for_each_segment(capsys: pytest.CaptureFixture[str]) -> None:
    """While training with dropout every segment is computed apart, with one notice; in evaluation once."""
    data, packed = stream(), lora(0.1)
    assert data.tree is not None
    width = Width(packed.model)
    for is_training, tokens in ((False, data.tree.num_tokens), (True, 143), (True, 143)):
        packed.train(is_training)(data)
        assert width.tokens == tokens
    assert capsys.readouterr().err.count("dropout is drawn for each segment") == 1
    assert lora(0.0).train()(data).item() == pytest.approx(lora(0.0).eval()(data).item(), rel=1e-6)


@pytest.mark.parametrize(("family", "settings"), [
    ("llama", {"attention_dropout": 0.1}), ("gpt2", {"resid_pdrop": 0.1}), ("opt", {"dropout": 0.1}),
    ("mixtral", {"router_jitter_noise": 0.1})])
def test_models_that_draw_random_numbers_are_known(family: str, settings: dict[str, float]) -> None:
    if family == "mixtral":
        assert randomness(other_model(family, {**OTHERS[family], **settings}))
        return
    assert randomness(tiny_model(family, **settings)) and not randomness(tiny_model(family))


def test_noise_is_drawn_for_each_segment(capsys: pytest.CaptureFixture[str]) -> None:
    packed, data = PackedLM(tiny_model()).train(), stream()
    noise, width = EmbeddingNoise(packed, 5.0), Width(packed.model)
    packed(data)
    assert width.tokens == 143 and "noise is drawn for each segment" in capsys.readouterr().err
    noise.remove()
    packed(data)
    assert data.tree is not None and width.tokens == data.tree.num_tokens


def test_a_model_that_looks_at_its_neighbours_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A layer that adds 1 to the rows before position 8 sees no difference packed or padded, but in a tree it does."""
    model, data = tiny_model(), stream()

    def meddle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        positions = kwargs["position_ids"]
        breaks = (positions[:, 1:] != positions[:, :-1] + 1) & (positions[:, 1:] > 0)
        shift = torch.zeros_like(positions)
        shift[:, 1:] = breaks
        return out + shift[..., None]

    model.model.layers[0].register_forward_hook(meddle, with_kwargs=True)
    packed, width = PackedLM(model), Width(model)
    packed(data)
    assert "computes something else over shared prompts" in packed.report().apart
    assert packed.report().layout == "packed" and width.tokens == 143
    assert "a prompt with several answers is computed for each of them" in capsys.readouterr().err
