"""Calibration of a judge: is it right as often as it says (Guo et al. 2017, arXiv:1706.04599)?

A judge that leads by d says that it is right with probability sigmoid(|d|), from 0.5 to 1, and is right when d > 0.

    ECE = sum_b n_b / n |accuracy_b - confidence_b|  =  sum_b |sum_{i in b} (right_i - confidence_i)| / n      Eq. 3

over BINS bins of equal width. The inner sums add up over micro-batches and processes.

Shape legend: N decisions.
"""

import torch
from torch import Tensor

BINS = 10


def confidence(lead_N: Tensor) -> Tensor:
    """Return the probability of being right that a lead claims, (N,), between 0.5 and 1."""
    return torch.sigmoid(lead_N.abs())


def bins_of(confidence_N: Tensor) -> Tensor:
    """Return the bin of each confidence, (N,): the first starts at 0.5, the last ends at 1 and holds it."""
    return ((confidence_N - 0.5) * (2 * BINS)).long().clamp(0, BINS - 1)


def gaps(lead_N: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted sum of right - confidence in each bin, (BINS,)."""
    sure_N = confidence(lead_N)
    gap_N = weight_N * ((lead_N > 0).to(lead_N.dtype) - sure_N)
    return torch.zeros(BINS, dtype=lead_N.dtype, device=lead_N.device).index_add(0, bins_of(sure_N), gap_N)
