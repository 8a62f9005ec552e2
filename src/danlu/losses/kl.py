"""Estimators of KL(pi || ref) from samples of pi (Schulman 2020, "Approximating KL Divergence")."""

from collections.abc import Callable

from torch import Tensor


def k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return log pi - log ref: unbiased, high variance, may be negative."""
    return logps - ref_logps


def k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return (log pi - log ref)^2 / 2: biased, low variance, never negative; its gradient is that of the KL."""
    return 0.5 * (logps - ref_logps) ** 2


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return r - 1 - log r, r = ref / pi: unbiased, low variance, never negative (Eq. 4 of GRPO, arXiv:2402.03300)."""
    log_ratio = ref_logps - logps
    return log_ratio.exp() - 1 - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted_coefficient(coefficient: float, observed_kl: float, *, target: float, horizon: float, batch: int) -> float:
    """Return the next coefficient of the adaptive controller (Ziegler et al. 2019, arXiv:1909.08593, Sec. 2.2).

        e = clip(KL / target - 1, -0.2, 0.2),    beta <- beta (1 + e batch / horizon)
    """
    error = min(max(observed_kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * batch / horizon)
