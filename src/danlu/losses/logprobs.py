"""Log-probabilities of given tokens from whole logits, in float64: the oracle of the tiled head. Slow on purpose.

Shape legend: R rows, V vocabulary.
"""

import torch
from torch import Tensor


def reference_logps(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Return log softmax(logits)[target] for each row, (R,) float64.

    log p(y) = z_y - log sum_v exp(z_v)
    """
    return torch.log_softmax(logits_RV.double(), dim=-1).gather(-1, targets_R[:, None]).squeeze(-1)


def reference_nll_sum(
    logits_RV: Tensor, targets_R: Tensor, weights_R: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return sum_t w_t ((1 - eps) (-log p(y_t)) + eps mean_v (-log p(v))), a float64 scalar.

    Smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    logps_RV = torch.log_softmax(logits_RV.double(), dim=-1)
    chosen_R = logps_RV.gather(-1, targets_R[:, None]).squeeze(-1)
    row_nll = -(1.0 - label_smoothing) * chosen_R - label_smoothing * logps_RV.mean(-1)
    return (row_nll * weights_R.double()).sum()
