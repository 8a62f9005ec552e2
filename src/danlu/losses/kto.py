"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

import torch
from torch import Tensor


def kto_loss(
    logps: Tensor, ref_logps: Tensor, desirable: Tensor, *, baseline: Tensor, beta: float,
    desirable_weight: float, undesirable_weight: float,
) -> Tensor:
    """Return one loss per example, (B,); Eq. 7-8 with r = log pi(y|x) - log ref(y|x) and z the KL baseline.

        L = w_D (1 - sigmoid(beta (r - z)))   for desirable answers
        L = w_U (1 - sigmoid(beta (z - r)))   for undesirable ones

    `baseline` is the mean of r over mismatched answers y' of the whole global batch, clamped at 0, without gradient.
    """
    reward = logps - ref_logps
    good = desirable_weight * (1 - torch.sigmoid(beta * (reward - baseline)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (baseline - reward)))
    return torch.where(desirable, good, bad)
