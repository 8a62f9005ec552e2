"""Losses of reward models: pairs, rankings of K answers, single good or bad answers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, centre: float = 0.0) -> Tensor:
    """Bradley-Terry on pairs, (P,): L = -log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2.

    `margin` is the labelled strength of the preference (Llama 2, arXiv:2307.09288, Eq. 2); `centre` keeps rewards
    around 0 (Eisenstein et al. 2023, arXiv:2312.09244, Eq. 2).
    """
    loss = -F.logsigmoid(chosen - rejected - margin)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss


def ranking_loss(
    rewards_GK: Tensor, valid_GK: Tensor, *, margin: Tensor | float = 0.0, centre: float = 0.0,
) -> Tensor:
    """InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, Eq. 1): all pairs of K ranked answers, (G,).

        L = -1 / C(K, 2)  sum_{i < j} log sigmoid(r_i - r_j)

    `valid_GK` is True for answers that exist; groups may have fewer than K. `margin` and `centre` as in `pair_loss`.
    """
    losses_GKK = pair_loss(rewards_GK[:, :, None], rewards_GK[:, None, :], margin=margin, centre=centre)
    return mean_over_pairs(losses_GKK, valid_GK)


def mean_over_pairs(values_GKK: Tensor, valid_GK: Tensor) -> Tensor:
    """Return the mean of values[i, j] over the pairs i < j of answers that exist, (G,)."""
    pairs_GKK = pairs_of(valid_GK)
    total_G = torch.where(pairs_GKK, values_GKK, torch.zeros_like(values_GKK)).sum((1, 2))
    return total_G / pairs_GKK.sum((1, 2)).clamp(min=1)


def pairs_of(valid_GK: Tensor) -> Tensor:
    """Return which [i, j] are pairs i < j of answers that exist, (G, K, K)."""
    size = valid_GK.shape[1]
    upper_KK = torch.ones(size, size, dtype=torch.bool, device=valid_GK.device).triu(1)
    return valid_GK[:, :, None] & valid_GK[:, None, :] & upper_KK


def pointwise_loss(rewards: Tensor, is_good: Tensor) -> Tensor:
    """Binary cross-entropy of a good or bad label, (B,): L = -y log sigmoid(r) - (1 - y) log sigmoid(-r)."""
    return F.binary_cross_entropy_with_logits(rewards, is_good.to(rewards.dtype), reduction="none")
