"""Generalised Advantage Estimation (Schulman et al. 2016, arXiv:1506.02438)."""

import torch
from torch import Tensor


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return advantages and value targets over response tokens; all arguments are (B, T), right-padded, float32.

        delta_t = r_t + gamma V_{t+1} - V_t                 (Eq. 9)
        A_t     = delta_t + gamma lambda A_{t+1}            (Eq. 16)

    `mask_BT` is True where a token counts; a response ends where its mask ends, and V beyond it is 0.
    """
    advantages_BT = torch.zeros_like(values_BT)
    carry_B = values_BT.new_zeros(len(values_BT))
    next_value_B = torch.zeros_like(carry_B)
    for t in reversed(range(values_BT.shape[1])):
        alive_B = mask_BT[:, t].to(values_BT.dtype)
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        carry_B = alive_B * (delta_B + gamma * lam * carry_B)
        advantages_BT[:, t] = carry_B
        next_value_B = alive_B * values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT
