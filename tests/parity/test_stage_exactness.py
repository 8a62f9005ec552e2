"""One step of every stage on the fast path against the dense one, whole: reference scores, loss, every gradient.

Fast: shared prompts computed once, lean layers, the last MLP on supervised rows, the head in tiles. Dense: each segment
a row of a padded batch, stock layers, the model's own logits. Both prepare the step themselves, from equal weights.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from danlu.core.stream import Example
from danlu.losses import vocabulary_sweep as head
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import RunPlan, base_of
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, Models, Stage, by_number
from tests import online_world
from tests.parity.test_packed_families import sharpen
from tests.tiny import tiny_model

EXACT, FLOOR = 1e-5, 1e-7
ANSWERS = {"pt": ((0, 40), (0, 25)), "sft": ((14, 16), (9, 12))}
PAIRS = ((20, 14), (20, 9))
KEYS: dict[str, dict[str, Any]] = {
    "dpo": {"pref_ftx": 0.1, "pref_bco_weight": 0.5}, "kto": {"pref_beta": 0.5},
    "ppo": {"ppo_num_generations": 3}, "grpo": {"num_generations": 4, "grpo_beta": 1.0}}
"""Advantages of a group add up to 0: without a heavy KL the loss of grpo would be the rounding of cancelled terms."""
KEYS_OF_ONE_TILE: dict[str, dict[str, Any]] = {"ppo": {"ppo_entropy_coef": 0.01}}
"""Entropies come from logits of tiles that the backward pass makes again, not from blocks of words."""
SHARE_PROMPTS = {"rm", "dpo", "kto", "ppo", "grpo"}
"""Stages of several answers to a prompt; for kto the reference scores an answer and a mismatched one."""


@dataclass
class Watch:
    """What each forward pass of one language model was given, and how many tokens it computed."""

    lm: PackedLM
    seen: list[tuple[StreamTensors, bool, int]] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        base_of(self.lm.model).get_input_embeddings().register_forward_hook(self._embed)
        self.lm.register_forward_hook(self._end, with_kwargs=True)

    def _embed(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.tokens = args[0].numel()

    def _end(self, module: nn.Module, args: tuple[StreamTensors], kwargs: dict[str, Any], out: Tensor) -> None:
        self.seen.append((args[0], kwargs.get("output") != "hidden", self.tokens))


def offline_data(name: str) -> list[Example]:
    """Four examples: one segment for pt and sft, else answers of different lengths behind one prompt."""
    random, made = np.random.default_rng(4), []
    for index in range(4):
        sizes = ANSWERS[name][index % 2:][:1] if name in ANSWERS else PAIRS + ((20, 6),) * (name == "rm")
        prompt = random.integers(5, 300, 20)
        ids = [np.concatenate([prompt[:start], random.integers(5, 300, answer)]) for start, answer in sizes]
        trained = np.concatenate([np.arange(start + answer) >= start for start, answer in sizes])
        facts = {"kto": (float(index % 2),), "rm": (0.0, 1.0)}.get(name, ())
        made.append(Example(np.concatenate(ids), trained, lengths=tuple(map(len, ids)), index=index, facts=facts))
    return made


def offline_stage(kind: type[Stage], config: Any, method: str) -> Stage:
    policy: Any = sharpen(tiny_model())
    reference = None
    if method == "lora":
        policy = get_peft_model(policy, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False,
                                                   exclude_modules=["lm_head"]))
    elif "reference" in kind.roles:
        reference = PackedLM(sharpen(tiny_model(seed=1))).requires_grad_(False)
    return kind(config, Models(kind.make_policy(PackedLM(policy)).train(), reference))


def dense(network: Any) -> Any:
    """Return a copy whose language models take the padded layout and make their logits themselves."""
    network = copy.deepcopy(network)
    for module in network.modules() if network is not None else ():
        if isinstance(module, PackedLM):
            module._plan = RunPlan(packed=False, head=None)
    return network


def watches(models: Models) -> list[Watch]:
    networks = [one for one in (models.policy, models.reference) if one is not None]
    return [Watch(module) for network in networks for module in network.modules() if isinstance(module, PackedLM)]


def step(stage: Stage, data: list[Example]) -> tuple[list[Example], Tensor]:
    """Prepare the first minibatch, move the policy away from where it was, and go forward and backward."""
    batch = list(next(iter(stage.prepare(data))))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in stage.models.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    loss = stage.loss(stage.collate(batch)).total
    loss.backward()
    return batch, loss.detach()


def check_fast(name: str, seen: list[Watch]) -> None:
    for watch in seen:
        report, plan = watch.lm.report(), watch.lm._plan
        assert (report.layout, report.head, report.apart) == ("packed", "tiled", "")
        assert plan is not None and plan.lean is not None and watch.seen
        for stream, with_head, tokens in watch.seen:
            assert tokens == (stream.num_tokens if stream.tree is None else stream.tree.num_tokens)
            assert plan.lean.cuts(tokens, stream.num_rows, with_head=with_head) == (name != "pt")
    shares = any(tokens < stream.num_tokens for watch in seen for stream, _, tokens in watch.seen)
    assert shares == (name in SHARE_PROMPTS)


def check_dense(seen: list[Watch]) -> None:
    for watch in seen:
        assert (watch.lm.report().layout, watch.lm.report().head) == ("padded", "model") and watch.seen
        assert all(tokens == len(stream.lengths) * stream.max_length for stream, _, tokens in watch.seen)


@pytest.mark.parametrize(("method", "tile"), [("full", 16), ("full", 1024), ("lora", 16)])
@pytest.mark.parametrize("name", list(STAGES))
def test_the_fast_path_is_the_dense_one(
    name: str, method: str, tile: int, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss to 1e-5; each parameter's gradient to 1e-5 of its own norm, or to 1e-7 of the whole gradient's."""
    monkeypatch.setattr(head, "MIN_TILE_ROWS", tile)
    monkeypatch.setitem(head.MAX_TILE_ROWS, "cpu", tile)
    monkeypatch.setitem(head.TILE_BYTES, "cpu", 4 * 320 * tile)
    monkeypatch.setitem(head.BLOCK_BYTES, "cpu", 4 * 64 * tile)
    kind, keys = STAGES[name], KEYS.get(name, {}) | (KEYS_OF_ONE_TILE.get(name, {}) if tile > 16 else {})
    if "rollouts" in kind.roles:
        adapter = online_world.LORA if method == "lora" else online_world.FULL
        fast = online_world.make(kind, tiny_base, tmp_path, adapter, **keys).stage
        data = online_world.prompts()
    else:
        fast, data = offline_stage(kind, kind.Config(**keys), method), offline_data(name)
    slow = kind(fast.config, Models(dense(fast.models.policy), dense(fast.models.reference),
                                    rollouts=fast.models.rollouts))
    slow.surroundings = copy.copy(fast.surroundings)
    fast.surroundings.deal = slow.surroundings.deal = by_number(32)
    seen, seen_slow = watches(fast.models), watches(slow.models)
    expected_batch, expected = step(slow, data)
    batch, loss = step(fast, data)
    check_fast(name, seen)
    check_dense(seen_slow)
    assert all(np.array_equal(one.input_ids, other.input_ids)
               for one, other in zip(batch, expected_batch, strict=True))
    assert loss.item() == pytest.approx(expected.item(), rel=EXACT)
    check_gradients(fast.models.policy, slow.models.policy)


def check_gradients(fast: nn.Module, slow: nn.Module) -> None:
    wanted = {name: p.grad.double() for name, p in slow.named_parameters() if p.grad is not None}
    found = {name: p.grad.double() for name, p in fast.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and wanted
    floor = FLOOR * float(torch.stack([grad.norm() for grad in wanted.values()]).norm())
    for name, grad in wanted.items():
        assert float((found[name] - grad).norm()) <= EXACT * float(grad.norm()) + floor, name
