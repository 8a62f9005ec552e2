"""Losses on pairs of answers: DPO and its relatives, each with the paper and equation it comes from.

Legend: P pairs. chosen, rejected, ref_chosen, ref_rejected are log pi(y|x), float32 of shape (P,), summed over the
answer's tokens or averaged where the paper says so. Every function returns one loss per pair, (P,), and sums nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_ratio_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """Return log(pi(y_w)/ref(y_w)) - log(pi(y_l)/ref(y_l)), the argument of Eq. 7, Rafailov et al. 2023."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def sigmoid_loss(margin: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7), labels flipped with probability eps (cDPO, Mitchell 2023).

        L = -(1 - eps) log sigmoid(beta m) - eps log sigmoid(-beta m)
    """
    logits = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def robust_loss(margin: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409, Eq. 9): unbiased when labels flip with chance eps < 1/2.

        L = ( -(1 - eps) log sigmoid(beta m) + eps log sigmoid(-beta m) ) / (1 - 2 eps)
    """
    logits = beta * margin
    flipped = (1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return -flipped / (1 - 2 * label_smoothing)


def hinge_loss(margin: Tensor, *, beta: float) -> Tensor:
    """SLiC-HF in the form of RSO (Liu et al. 2024, arXiv:2309.06657, Eq. 8): L = max(0, 1 - beta m)."""
    return torch.relu(1 - beta * margin)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """IPO (Azar et al. 2024, arXiv:2310.12036, Eq. 17): L = (m - 1 / (2 beta))^2, with beta the paper's tau.

    The margin is taken of log-probabilities averaged over tokens, as the authors advise for answers of unequal length.
    """
    return (margin - 1 / (2 * beta)) ** 2


def kto_pair_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *,
    beta: float, chosen_kl: Tensor, rejected_kl: Tensor,
) -> Tensor:
    """KTO on pairs (Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8): each answer against the other side's KL baseline.

        L = 1 - sigmoid(beta (r_w - KL_l))  +  1 - sigmoid(beta (KL_w - r_l)),     r = log pi - log ref

    `chosen_kl` and `rejected_kl` are the means of r over the whole global batch, clamped at 0 and without gradient.
    """
    better = 1 - torch.sigmoid(beta * (chosen - ref_chosen - rejected_kl))
    worse = 1 - torch.sigmoid(beta * (chosen_kl - (rejected - ref_rejected)))
    return better + worse


def orpo_odds_loss(chosen_mean: Tensor, rejected_mean: Tensor) -> Tensor:
    """The odds-ratio term of ORPO (Hong et al. 2024, arXiv:2403.07691, Eq. 7); the full loss adds the chosen NLL.

        log odds(y) = log p - log(1 - p),    log p = mean log-probability of the answer's tokens
        L_OR = -log sigmoid( log odds(y_w) - log odds(y_l) )
    """
    log_odds = (chosen_mean - rejected_mean) - (log1m_exp(chosen_mean) - log1m_exp(rejected_mean))
    return -F.logsigmoid(log_odds)


def simpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, *, beta: float, gamma: float,
               label_smoothing: float = 0.0) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, Eq. 6): no reference, mean log-probabilities, a target margin gamma.

        L = -log sigmoid( beta mean_w - beta mean_l - gamma )
    """
    logits = beta * (chosen_mean - rejected_mean) - gamma
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def bco_pair_loss(chosen_reward: Tensor, rejected_reward: Tensor, *, shift: Tensor) -> Tensor:
    """BCO (Jung et al. 2024, arXiv:2404.04656, Eq. 8): a classifier whose logit is the reward minus its running mean.

        L = -log sigmoid(r_w - delta) - log sigmoid(-(r_l - delta)),     r = beta (log pi - log ref)
    """
    return -F.logsigmoid(chosen_reward - shift) - F.logsigmoid(-(rejected_reward - shift))


def log1m_exp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012): two branches meet at -log 2."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    return torch.where(x > -0.6931471805599453, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def length_desensitised(logps_R: Tensor, within_R: Tensor, *, alpha: float) -> Tensor:
    """LD-DPO (Liu et al. 2024, arXiv:2409.06411, Eq. 9): tokens past the shorter answer's length count alpha times.

    `within_R` is True for the tokens of an answer up to the length that both answers of the pair share.
    """
    return torch.where(within_R, logps_R, alpha * logps_R)
