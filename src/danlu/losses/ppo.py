"""Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) and the clipped surrogates that followed.

Legend: R response tokens. Every argument is float32 of shape (R,); every function returns one loss per token, (R,).
"""

import torch
from torch import Tensor


def ppo_policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float,
                    clip_high: float | None = None) -> Tensor:
    """The clipped surrogate, Eq. 7, negated; `clip_high` widens the upper bound alone (DAPO, arXiv:2503.14476, Eq. 10).

        rho = pi / pi_old,    L = -min( rho A, clip(rho, 1 - eps, 1 + eps_high) A )
    """
    ratio = (logps - old_logps).exp()
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, bounded * advantages)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """The value loss of Eq. 9, clipped around V_old as in the authors' code (detail 9 of Huang et al. 2022).

        L = 1/2 max( (V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2 )
    """
    error = (values - returns) ** 2
    if clip is None:
        return 0.5 * error
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(error, (clipped - returns) ** 2)


def clip_fraction(logps: Tensor, old_logps: Tensor, *, clip: float, clip_high: float | None = None) -> Tensor:
    """Return 1 for every token whose ratio left the trust interval, (R,)."""
    ratio = (logps - old_logps).exp()
    return ((ratio < 1 - clip) | (ratio > 1 + (clip if clip_high is None else clip_high))).float()
