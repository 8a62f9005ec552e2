"""Alignment losses against arithmetic done by hand and naive definitions in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.losses.dpo import (
    bco_pair_loss,
    hinge_loss,
    ipo_loss,
    kto_pair_loss,
    log1m_exp,
    log_ratio_margin,
    orpo_odds_loss,
    robust_loss,
    sigmoid_loss,
    simpo_loss,
)
from danlu.losses.gae import gae
from danlu.losses.group import centred_advantages, grpo_advantages, rloo_advantages
from danlu.losses.kl import adapted_coefficient, k1, k2, k3
from danlu.losses.kto import kto_loss
from danlu.losses.ppo import ppo_policy_loss, ppo_value_loss
from danlu.losses.reward import pair_loss, pointwise_loss, ranking_loss


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    """margin = (-1 + 2) - (-3 + 1) = 3, beta m = 0.3: DPO log(1 + e^-0.3), hinge 1 - 0.3, IPO (3 - 5)^2 = 4."""
    margin = log_ratio_margin(t(-1), t(-3), t(-2), t(-1))
    assert margin.item() == 3
    assert sigmoid_loss(margin, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-0.3)))
    assert hinge_loss(margin, beta=0.1).item() == pytest.approx(0.7)
    assert ipo_loss(margin, beta=0.1).item() == pytest.approx(4)


def test_label_smoothing_by_hand() -> None:
    """With eps = 0.2 and beta m = 0.3: cDPO 0.8 a + 0.2 b, robust (0.8 a - 0.2 b) / 0.6; a, b = log(1 + e^-+0.3)."""
    a, b = math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.3))
    assert sigmoid_loss(t(3), beta=0.1, label_smoothing=0.2).item() == pytest.approx(0.8 * a + 0.2 * b)
    assert robust_loss(t(3), beta=0.1, label_smoothing=0.2).item() == pytest.approx((0.8 * a - 0.2 * b) / 0.6)


def test_robust_loss_is_unbiased() -> None:
    """The mean over flipped labels is the clean DPO loss: (1-eps) L(m) + eps L(-m) = -log sigmoid(m)."""
    eps, margin = 0.3, t(1.7)
    mean = (1 - eps) * robust_loss(margin, beta=1, label_smoothing=eps) + eps * robust_loss(
        -margin, beta=1, label_smoothing=eps)
    torch.testing.assert_close(mean, sigmoid_loss(margin, beta=1))


def test_reference_free_losses_by_hand() -> None:
    """Means log(1/2), log(1/4): odds 1 and 1/3, log ratio log 3, L_OR = log(4/3); SimPO 2 log 2 - 0.5 as its logit."""
    chosen, rejected = t(math.log(0.5)), t(math.log(0.25))
    assert orpo_odds_loss(chosen, rejected).item() == pytest.approx(math.log(4 / 3))
    logit = 2 * (math.log(0.5) - math.log(0.25)) - 0.5
    assert simpo_loss(chosen, rejected, beta=2, gamma=0.5).item() == pytest.approx(-math.log(sigma(logit)))


def test_kto_and_bco_by_hand() -> None:
    """r = 1 with z = 0.5: desirable 1 - sigmoid(0.05), undesirable 2 (1 - sigmoid(-0.05)) at beta 0.1."""
    losses = kto_loss(t(-1, -1), t(-2, -2), torch.tensor([True, False]), baseline=t(0.5)[0], beta=0.1,
                      desirable_weight=1, undesirable_weight=2)
    torch.testing.assert_close(losses, t(1 - sigma(0.05), 2 * (1 - sigma(-0.05))))
    pair = kto_pair_loss(t(-1), t(-3), t(-2), t(-1), beta=0.1, chosen_kl=t(1), rejected_kl=t(0))
    assert pair.item() == pytest.approx(1 - sigma(0.1) + 1 - sigma(0.1 * (1 + 2)))
    bco = bco_pair_loss(t(0.1), t(-0.2), shift=t(0.05))
    assert bco.item() == pytest.approx(-math.log(sigma(0.05)) - math.log(sigma(0.25)))


@given(st.floats(-40, -1e-6))
def test_log1m_exp(x: float) -> None:
    """Against the definition in exact-enough arithmetic: log(1 - e^x) = log(-expm1(x))."""
    assert log1m_exp(t(x)).item() == pytest.approx(math.log(-math.expm1(x)), rel=1e-9, abs=1e-15)


@given(st.lists(st.floats(-20, 0), min_size=4, max_size=4), st.floats(-5, 5))
def test_pairs_symmetries(logps: list[float], shift: float) -> None:
    """Swapping the answers negates the margin; adding a constant to both log-probabilities changes nothing."""
    chosen, rejected, ref_chosen, ref_rejected = (t(x) for x in logps)
    margin = log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected)
    torch.testing.assert_close(log_ratio_margin(rejected, chosen, ref_rejected, ref_chosen), -margin)
    torch.testing.assert_close(log_ratio_margin(chosen + shift, rejected + shift, ref_chosen, ref_rejected), margin)


def test_reward_losses_by_hand() -> None:
    """Pairs: log(1 + e^-(2 - 1)) + 0.1 * 16; K = 3 rewards 2, 1, 0: (2 f(1) + f(2)) / 3 with f = log(1 + e^-x)."""
    f = lambda x: math.log1p(math.exp(-x))  # noqa: E731
    assert pair_loss(t(3), t(1), margin=t(1), centre=0.1).item() == pytest.approx(f(1) + 1.6)
    rewards = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 9.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    torch.testing.assert_close(ranking_loss(rewards, valid), t((2 * f(1) + f(2)) / 3, f(1)))
    torch.testing.assert_close(pointwise_loss(t(1, 1), torch.tensor([True, False])), t(f(1), f(-1)))


def test_gae_against_its_definition() -> None:
    """A_t = sum_l (gamma lambda)^l delta_{t+l} over the response, by a double loop; ragged masks."""
    torch.manual_seed(1)
    rewards, values = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    lengths, gamma, lam = [6, 4, 1], 0.9, 0.7
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b, n in enumerate(lengths):
        delta = [rewards[b, i] + gamma * (values[b, i + 1] if i + 1 < n else 0) - values[b, i] for i in range(n)]
        for i in range(6):
            expected = sum((gamma * lam) ** k * delta[i + k] for k in range(n - i)) if i < n else 0.0
            assert float(advantages[b, i]) == pytest.approx(float(expected))
            assert float(returns[b, i]) == pytest.approx(float(expected + values[b, i]) if i < n else 0.0)


def test_ppo_by_hand() -> None:
    """Ratio e^0.5 = 1.65 is clipped to 1.2 for A > 0 and not for A < 0; DAPO's upper bound 0.28 gives 1.28."""
    logps, old = t(0.5, 0.5), t(0.0, 0.0)
    torch.testing.assert_close(ppo_policy_loss(logps, old, t(1, -1), clip=0.2), t(-1.2, math.exp(0.5)))
    torch.testing.assert_close(ppo_policy_loss(logps, old, t(1, -1), clip=0.2, clip_high=0.28), t(-1.28, math.exp(0.5)))
    assert ppo_value_loss(t(2), t(1), t(0), clip=0.2).item() == pytest.approx(2.0)
    assert ppo_value_loss(t(1), t(2), t(0), clip=0.2).item() == pytest.approx(0.5 * 1.8**2)


def test_ppo_at_ratio_one_is_the_policy_gradient() -> None:
    """At pi = pi_old the gradient of the surrogate is -A grad log pi."""
    logps = t(-1, -2, -3).requires_grad_()
    advantages = t(0.5, -1, 2)
    ppo_policy_loss(logps, logps.detach(), advantages, clip=0.2).sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)


def test_kl_estimators_meet_the_definition() -> None:
    """Over an exact expectation, k1 and k3 average to KL(p || q); k3 is never negative; k2 agrees to second order."""
    p, q = t(0.5, 0.3, 0.2), t(0.45, 0.33, 0.22)
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * k3(p.log(), q.log())).sum(), exact)
    assert (k3(p.log(), q.log()) >= 0).all()
    assert (p * k2(p.log(), q.log())).sum().item() == pytest.approx(exact.item(), rel=0.05)


def test_adaptive_controller_by_hand() -> None:
    """KL 12 at target 6 saturates at +0.2: 0.1 (1 + 0.2 * 64 / 10000); KL 5.4 gives e = -0.1."""
    assert adapted_coefficient(0.1, 12, target=6, horizon=10000, batch=64) == pytest.approx(0.1 * 1.00128)
    assert adapted_coefficient(0.1, 5.4, target=6, horizon=1000, batch=100) == pytest.approx(0.1 * 0.99)


def test_group_advantages_by_hand() -> None:
    """Rewards 0, 0, 3: mean 1, std sqrt(3); RLOO: 0 - 1.5, 0 - 1.5, 3 - 0."""
    rewards = torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(grpo_advantages(rewards, eps=0)[0], t(-1, -1, 2) / math.sqrt(3))
    torch.testing.assert_close(centred_advantages(rewards)[0], t(-1, -1, 2))
    torch.testing.assert_close(rloo_advantages(rewards)[0], t(-1.5, -1.5, 3))
