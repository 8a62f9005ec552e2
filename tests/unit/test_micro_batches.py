"""Micro-batches: each example once, bounded tokens, equal work, the largest first; the same step whatever the cut."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from danlu.core.stream import Example, FloatArray
from danlu.engine.micro_batches import MOST_PADDED, MicroBatches
from danlu.engine.step import Stepper
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import Deal, Models, NoKeys, Surroundings, by_number
from danlu.stages.passes import by_answer, in_passes
from danlu.stages.sft import SFT
from tests.tiny import tiny_model
from tests.toy_stage import losses, train


def examples(*lengths: int) -> list[Example]:
    random = np.random.default_rng(0)
    return [Example(random.integers(5, 300, n), np.arange(n) >= n // 3, index=i) for i, n in enumerate(lengths)]


def indices(cut: list[list[Example]]) -> list[list[int]]:
    return [[one.index for one in part] for part in cut]


def test_short_examples_share_a_pass_up_to_the_padded_size() -> None:
    """2 x the longest (100) bounds a pass at 200 tokens; 100 + 5 x 20 = 200 fit in one where pairs made three."""
    assert indices(MicroBatches(2).cut(examples(20, 20, 100, 20, 20, 20))) == [[0, 1, 2, 3, 4, 5]]


def test_passes_are_balanced_and_the_largest_is_first() -> None:
    """1 x 60 tokens bound a pass; 60 + 40 + 30 + 20 + 10 = 160 need three: 60 | 40 + 10 | 30 + 20."""
    assert indices(MicroBatches(1).cut(examples(10, 40, 60, 20, 30))) == [[2], [0, 1], [3, 4]]


def test_a_long_example_is_not_joined_by_many_short_ones() -> None:
    """8 x 2048 bound a pass, and 255 x 20 + 2048 = 7148 tokens would fit; padded, 32 rows are 4 times the bound."""
    others, long = MicroBatches(8).cut(examples(2048, *[20] * 255))
    assert len(long) == 32 and long[0].index == 0 and len(others) == 224


def test_work_counts_attention_not_tokens_alone() -> None:
    """d = 1: a segment of l tokens costs l + l^2 / 12. 48 costs 240; 4 x 24 cost 4 x 72 = 288; the four come first."""
    one, four = Example(np.zeros(48, np.int64), np.ones(48, bool), index=0), examples(24, 24, 24, 24)
    assert indices(MicroBatches(2, tokens=96, width=1).cut([one, *four])) == [[0, 1, 2, 3], [0]]
    packed = Example(np.zeros(48, np.int64), np.ones(48, bool), lengths=(12,) * 4, index=9)
    assert MicroBatches(1, width=1)._cost(packed) == 48 + 4 * 12**2 / 12


@pytest.mark.parametrize("rule", [MicroBatches(1), MicroBatches(3), MicroBatches(3, tokens=64),
                                  MicroBatches(1, tokens=1), MicroBatches(8, width=32, most=128)])
def test_every_example_once_and_never_above_the_bound(rule: MicroBatches) -> None:
    random = np.random.default_rng(1)
    for size in (1, 2, 7, 40):
        rows = examples(*(int(n) for n in random.integers(1, 120, size)))
        cut, longest = rule.cut(rows), max(len(one.input_ids) for one in rows)
        assert sorted(one.index for part in cut for one in part) == list(range(size))
        bound = max(rule.tokens, longest) if rule.tokens else rule.examples * longest
        assert max(sum(len(one.input_ids) for one in part) for part in cut) <= bound
        assert max(len(part) * max(len(one.input_ids) for one in part) for part in cut) <= MOST_PADDED * bound
        work = [sum(rule._cost(one) for one in part) for part in cut]
        assert work == sorted(work, reverse=True)


@pytest.mark.parametrize("deal", [by_number(4), MicroBatches(2, tokens=64, width=1).deal])
def test_passes_hand_back_answers_in_the_order_of_the_examples(deal: Deal) -> None:
    """600 examples in three rounds: each gets the numbers of its own targets, whatever pass computed them."""
    rows = examples(*(2 + n * 7 % 41 for n in range(600)))
    sizes = []

    def ids_of_targets(micro: StreamTensors, part: Sequence[Example]) -> list[list[FloatArray]]:
        assert not torch.is_grad_enabled()
        sizes.append(len(micro.input_ids))
        return by_answer(micro.loss_targets, part)

    found = in_passes(rows, Surroundings(deal=deal), ids_of_targets)
    for one, (answer,) in zip(rows, found, strict=True):
        assert answer.tolist() == one.input_ids[1:][one.trained[1:]].tolist()
    assert sum(sizes) == sum(len(one.input_ids) for one in rows)
    assert len(sizes) == 150 or max(sizes) <= 64


def test_the_gradient_does_not_depend_on_the_cut() -> None:
    """Loss and gradient norm of one step, float64: the rule decides time and memory, nothing else."""
    results = []
    for rule in (MicroBatches(6), MicroBatches(1), MicroBatches(2, tokens=24), MicroBatches(2, width=32)):
        policy = PackedLM(tiny_model().double()).train()
        weights = list(policy.parameters())
        stepper = Stepper(Accelerator(cpu=True), SFT(NoKeys(), Models(policy)), policy, torch.optim.SGD(weights, 1.0),
                          weights, rule, 0.0, str)
        result = stepper.run(examples(20, 5, 17, 9, 30, 12), counts=True, step=1)
        results.append((result.loss, result.grad_norm, torch.cat([p.detach().flatten() for p in weights])))
    for loss, norm, after in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-9)
        assert norm == pytest.approx(results[0][1], rel=1e-9)
        assert torch.allclose(after, results[0][2], rtol=0, atol=1e-9)


def test_micro_batch_tokens_changes_no_step(tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "a")
    small, _ = train(tmp_path / "b", micro_batch_tokens=8)
    assert losses(small) == pytest.approx(losses(plain), abs=1e-5)
    assert small.steps == plain.steps
