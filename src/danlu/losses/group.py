"""Advantages of answers sampled in groups: GRPO, Dr. GRPO and RLOO. One number per answer; no gradient.

Legend: G prompts, N answers each.
"""

import torch
from torch import Tensor


def grpo_advantages(rewards_GN: Tensor, *, eps: float = 1e-4) -> Tensor:
    """GRPO (Shao et al. 2024, arXiv:2402.03300, Sec. 4.1.2): A = (r - mean) / std over the group."""
    return centred_advantages(rewards_GN) / (rewards_GN.std(1, keepdim=True) + eps)


def centred_advantages(rewards_GN: Tensor) -> Tensor:
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, Sec. 3.2): A = r - mean, undivided, so easy groups gain nothing."""
    centred_GN = rewards_GN - rewards_GN.mean(1, keepdim=True)
    # The mean of equal numbers is often one rounding step beside them, and a tiny spread would blow that up.
    return torch.where(is_idle(rewards_GN)[:, None], 0.0, centred_GN)


def rloo_advantages(rewards_GN: Tensor) -> Tensor:
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740, Eq. 8): A_i = r_i - mean of the other N - 1 answers."""
    number = rewards_GN.shape[1]
    return centred_advantages(rewards_GN) * number / (number - 1)


def is_idle(rewards_GN: Tensor) -> Tensor:
    """Return where all rewards of a group are equal, (G,): it teaches nothing."""
    return (rewards_GN == rewards_GN[:, :1]).all(1)
