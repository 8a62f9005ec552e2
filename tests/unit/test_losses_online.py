"""What ppo and grpo are made of, against loops over plain floats and numpy: whitening, moments, gradients, groups."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from danlu.losses.group import centred_advantages, grpo_advantages, is_idle, rloo_advantages
from danlu.losses.kl import adapted_coefficient, k3
from danlu.losses.ppo import clip_fraction, ppo_policy_loss, ppo_value_loss
from danlu.models.head import score_with_entropy
from danlu.stages.ppo import explained_variance
from danlu.stages.whiten import EPS, Moments, whiten

RNG = np.random.default_rng(9)
TABLES = [torch.tensor(RNG.normal(3.0, 2.0, shape), dtype=torch.float32) for shape in ((3, 5), (2, 7))]
MASKS = [torch.tensor(RNG.random(tuple(table.shape)) < 0.7) for table in TABLES]


def alone(values: list[float]) -> list[float]:
    return values


def together(calls: list[Callable[[Callable[[list[float]], list[float]]], object]]) -> list[object]:
    """Run the call of each "process" with a total that adds what all of them bring; each brings one list."""
    brought: list[list[float]] = []

    def note(values: list[float]) -> list[float]:
        brought.append(values)
        return values

    for call in calls:
        call(note)
    summed = [sum(column) for column in zip(*brought, strict=True)]
    return [call(lambda values: summed) for call in calls]


def test_whitening_over_processes_is_whitening_of_all() -> None:
    """Two parts whitened with a total that adds equal numpy on what both masks keep; the rest is 0."""
    everything = np.concatenate([table[mask].double().numpy() for table, mask in zip(TABLES, MASKS, strict=True)])
    for keep_mean in (False, True):
        parts = together([
            lambda total, at=at, keep=keep_mean: whiten(TABLES[at], MASKS[at], total, keep_mean=keep)
            for at in range(2)])
        for table, mask, part in zip(TABLES, MASKS, parts, strict=True):
            assert isinstance(part, Tensor)
            shift = 0.0 if keep_mean else everything.mean()
            expected = np.where(mask.numpy(), (table.double().numpy() - shift) / (everything.std() + EPS), 0.0)
            np.testing.assert_allclose(part.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_whitening_survives_what_has_no_spread() -> None:
    """Equal numbers become 0, not NaN; a mask that keeps nothing leaves zeros."""
    equal, mask = torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)
    assert whiten(equal, mask, alone).abs().max() < 1e-3
    assert torch.equal(whiten(equal, ~mask, alone), torch.zeros(2, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), min_size=1, max_size=5))
def test_moments_are_those_of_all_numbers(steps: list[list[float]]) -> None:
    """Chan's update, step by step, against numpy on the concatenation."""
    moments = Moments()
    for step in steps:
        moments = moments.after(torch.tensor(step), alone)
    everything = np.concatenate([np.array(step, np.float32).astype(np.float64) for step in steps])
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(everything.mean(), abs=1e-9)
    assert moments.squares == pytest.approx(((everything - everything.mean()) ** 2).sum(), rel=1e-7, abs=1e-6)
    if len(everything) > 1 and everything.std() > 1e-3:
        assert moments.std == pytest.approx(everything.std(ddof=1), rel=1e-4)


def test_moments_over_processes() -> None:
    """Both processes hold the moments of all they brought, after one step and after two."""
    first, second = RNG.normal(size=(2, 2, 4))
    moments = [Moments(), Moments()]
    for step in (first, second):
        moments = together([  # type: ignore[assignment]
            lambda total, at=at, step=step, now=moments: now[at].after(torch.tensor(step[at]), total)
            for at in range(2)])
    for one in moments:
        assert (one.count, one.mean) == (16, pytest.approx(np.concatenate([first, second]).mean()))
        assert one.std == pytest.approx(np.concatenate([first, second]).std(ddof=1))
    assert moments[0].after(torch.zeros(0), alone) == moments[0]
    assert (Moments().std, Moments().after(torch.ones(3), alone).std) == (1.0, 1.0)


def test_where_the_policy_loss_has_gradient() -> None:
    """-rho A inside the interval and where clipping would flatter, 0 where the ratio left it the way A pulls.

    ratios e^-0.5 = 0.61, 1, e^0.5 = 1.65 with eps 0.2; A = 2 and -2.
    """
    old = torch.zeros(6)
    logps = torch.tensor([-0.5, 0.0, 0.5, -0.5, 0.0, 0.5], requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    ppo_policy_loss(logps, old, advantages, clip=0.2).sum().backward()
    low, high = math.exp(-0.5), math.exp(0.5)
    assert logps.grad is not None
    torch.testing.assert_close(logps.grad, torch.tensor([-2 * low, -2.0, 0.0, 0.0, 2.0, 2 * high]))


def test_where_the_value_loss_has_gradient() -> None:
    """V_old = 0, eps 0.5. R = 2: V = 1 is past the clip and nearer R, so the clipped, constant term is the larger and
    the gradient 0; V = -1 is farther from R, so V - R = -3 stays; V = 0.25 is inside: -1.75. Unclipped: V - R."""
    values = torch.tensor([1.0, -1.0, 0.25], requires_grad=True)
    loss = ppo_value_loss(values, torch.zeros(3), torch.full((3,), 2.0), clip=0.5)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.5 * 1.5**2, 0.5 * 9.0, 0.5 * 1.75**2]))
    gradient, = torch.autograd.grad(loss.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -3.0, -1.75]))
    unclipped = ppo_value_loss(values, torch.zeros(3), torch.full((3,), 2.0), clip=None)
    gradient, = torch.autograd.grad(unclipped.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -3.0, -1.75]))


def test_clip_fraction_follows_both_bounds() -> None:
    """Ratios 0.7, 0.9, 1.25, 1.4: outside 0.8 to 1.2 are three, outside 0.8 to 1.28 are two."""
    logps = torch.tensor([0.7, 0.9, 1.25, 1.4]).log()
    assert clip_fraction(logps, torch.zeros(4), clip=0.2).tolist() == [1, 0, 1, 1]
    assert clip_fraction(logps, torch.zeros(4), clip=0.2, clip_high=0.28).tolist() == [1, 0, 0, 1]


def test_entropy_and_its_gradient() -> None:
    """-sum p log p by a loop over the vocabulary; dH/dz_k = -p_k (log p_k + H)."""
    logits = torch.tensor(RNG.normal(size=(3, 6)) * 2, dtype=torch.float64, requires_grad=True)
    logps, entropy = score_with_entropy(logits, torch.tensor([0, 3, 5])).unbind(0)
    gradient, = torch.autograd.grad(entropy.sum(), logits)
    for row in range(3):
        weights = [math.exp(z) for z in logits[row].tolist()]
        p = [one / sum(weights) for one in weights]
        by_hand = -sum(one * math.log(one) for one in p)
        assert float(entropy[row].detach()) == pytest.approx(by_hand, rel=1e-5)
        assert float(logps[row].detach()) == pytest.approx(math.log(p[(0, 3, 5)[row]]), rel=1e-5)
        assert gradient[row].tolist() == pytest.approx([-q * (math.log(q) + by_hand) for q in p], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -2.7, 1e6 + 0.1])
@pytest.mark.parametrize("advantages", [grpo_advantages, centred_advantages, rloo_advantages])
def test_equal_rewards_teach_nothing(advantages: Callable[[Tensor], Tensor], reward: float) -> None:
    """Exactly 0 for any number of answers, though the mean of equal float32 numbers is often not that number."""
    for number in range(2, 17):
        rewards_GN = torch.cat([torch.full((1, number), reward), torch.arange(float(number))[None]])
        found = advantages(rewards_GN)
        assert not found[0].any() and found[1].abs().max() > 0.4
        assert is_idle(rewards_GN).tolist() == [True, False]


def test_groups_by_loops() -> None:
    """Each advantage as its paper writes it, answer by answer."""
    rewards_GN = torch.tensor(RNG.normal(size=(3, 5)), dtype=torch.float64)
    for group in range(3):
        r = rewards_GN[group].tolist()
        mean = sum(r) / 5
        std = math.sqrt(sum((one - mean) ** 2 for one in r) / 4)
        assert grpo_advantages(rewards_GN)[group].tolist() == pytest.approx([(one - mean) / (std + 1e-4) for one in r])
        assert centred_advantages(rewards_GN)[group].tolist() == pytest.approx([one - mean for one in r])
        others = [sum(r[:i] + r[i + 1:]) / 4 for i in range(5)]
        assert rloo_advantages(rewards_GN)[group].tolist() == pytest.approx(
            [one - other for one, other in zip(r, others, strict=True)])


def test_explained_variance_over_processes() -> None:
    """1 - var(R - V) / var(R) of numpy over what both processes hold; 0 where returns do not vary."""
    values = [table + 0.3 * torch.randn(table.shape, generator=torch.Generator().manual_seed(1)) for table in TABLES]
    found = together([lambda total, at=at: explained_variance(values[at], TABLES[at], MASKS[at], total)
                      for at in range(2)])
    returns, rest = (np.concatenate([one[mask].double().numpy() for one, mask in zip(ones, MASKS, strict=True)])
                     for ones in (TABLES, [table - value for table, value in zip(TABLES, values, strict=True)]))
    assert found == [pytest.approx(1 - rest.var() / returns.var(), rel=1e-5)] * 2
    flat = torch.full((2, 2), 0.5)
    assert explained_variance(torch.randn(2, 2), flat, torch.ones(2, 2, dtype=torch.bool), alone) == 0.0


def test_approximate_kl_estimates_old_against_new() -> None:
    """The exact mean of k3(old, new) under the old policy is KL(old || new)."""
    old, new = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    exact = sum(math.exp(p) * (p - q) for p, q in zip(old.tolist(), new.tolist(), strict=True))
    assert float((old.exp() * k3(old, new)).sum()) == pytest.approx(exact, rel=1e-5)


def test_the_controller_steers_to_its_target() -> None:
    """Below the target the weight falls, above it rises, at it stays; a step moves it by at most 20 % x batch / N."""
    for observed, factor in ((0.0, 1 - 0.2 * 8 / 100), (6.0, 1.0), (6.6, 1 + 0.1 * 8 / 100), (99.0, 1 + 0.2 * 8 / 100)):
        assert adapted_coefficient(0.2, observed, target=6.0, horizon=100, batch=8) == pytest.approx(0.2 * factor)
