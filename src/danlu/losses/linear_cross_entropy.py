"""Vocabulary head and cross-entropy in one: logits never exist beyond one tile.

    z = cap(s (h W^T + b)),   cap(x) = c tanh(x / c)   (identity without soft-capping)
    log p_t = z_t,y - Z_t,    Z_t = log sum_v exp(z_tv)
    d log p_t / d h_t = z'_t,y W_y - sum_v p_tv z'_tv W_v,    p_tv = exp(z_tv - Z_t),   z' = s (1 - (z / c)^2)

One sweep over the vocabulary (`vocabulary_sweep`) gives Z, z_y and d log p / d h at once, so that a frozen head costs
two matrix products a row and keeps nothing. A trained one needs a third, d W = sum_t g_t d log p_t / d W, once Z and
g_t are known. Where g is known before the backward pass (pre-training, supervised fine-tuning) that is behind each
tile; where it is not (preference and policy losses), `linear_logps` keeps the blocks of the sweep if all rows are one
tile, and forms them again in the backward pass if not: four products.
The idea of tiling the head: Wijmans et al. 2024, arXiv 2411.09009 (Cut Cross-Entropy); of gradients in the forward
pass: Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel).

Shape legend: R rows, H hidden, V vocabulary, t rows of one tile.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from danlu.losses.logit_transform import IDENTITY, LogitTransform
from danlu.losses.vocabulary_sweep import Head, HeadGradient, Plan, equal_size, most_rows, pieces, tile_rows_for


def linear_cross_entropy(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    weights_R: Tensor,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform = IDENTITY,
    label_smoothing: float = 0.0,
    tile_rows: int | None = None,
) -> Tensor:
    """Return sum_t w_t nll_t, a float32 scalar; its gradients are formed here, not in the backward pass.

    The weights are constants: no gradient flows into them. `label_smoothing` spreads that share of the target evenly
    over the vocabulary; that part is left to autograd, and takes a gradient of the head's size of its own. Without grad
    mode, or with nothing to train, no gradient work is done.
    """
    plan = _plan(hidden_RH, weight_VH, bias_V, transform, tile_rows)
    total: Tensor = _WeightedNLL.apply(hidden_RH, weight_VH, bias_V, targets_R, weights_R, plan)
    if label_smoothing:
        above_R = _above_the_mean(hidden_RH, weight_VH, bias_V, targets_R, plan)
        total = total + label_smoothing * (above_R * weights_R.detach()).sum()
    return total


def linear_logps(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    targets_R: Tensor,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform = IDENTITY,
    tile_rows: int | None = None,
) -> Tensor:
    """Return log p(y_t) of every row, (R,) float32; d log p / d h is formed here, d W in the backward pass."""
    plan = _plan(hidden_RH, weight_VH, bias_V, transform, tile_rows)
    logps: Tensor = _RowLogps.apply(hidden_RH, weight_VH, bias_V, targets_R, plan)
    return logps


def _plan(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, tile_rows: int | None
) -> Plan:
    device = hidden.device
    if torch.is_autocast_enabled(device.type):
        compute = torch.get_autocast_dtype(device.type)
    else:
        compute = torch.promote_types(hidden.dtype, weight.dtype)
    grad = torch.is_grad_enabled()
    wants_weight, wants_bias = grad and weight.requires_grad, grad and bias is not None and bias.requires_grad
    if not tile_rows:
        tile_rows = tile_rows_for(len(hidden), len(weight), device) if wants_weight or wants_bias \
            else equal_size(len(hidden), most_rows(device))
    accumulate = torch.float64 if compute == torch.float64 else torch.float32
    return Plan(compute, accumulate, tile_rows, grad and hidden.requires_grad, wants_weight, wants_bias, transform)


def _gradient_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of a gradient that is scaled only later: float16 would keep too few bits of it."""
    return torch.float32 if hidden.dtype == torch.float16 else hidden.dtype


class _WeightedNLL(torch.autograd.Function):
    """Weighted sum of negative log-likelihoods with its gradients formed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, plan: Plan
    ) -> Tensor:
        d_hidden = torch.empty_like(hidden, dtype=_gradient_dtype(hidden)) if plan.wants_hidden else None

        def score(rows: slice) -> Tensor:  # a function, so that the blocks of a tile are gone before the next
            swept = head.sweep(rows, targets[rows], keeps=plan.wants_head)
            upstream = weights[rows].to(plan.accumulate).neg()
            if d_hidden is not None and swept.direction_tH is not None:
                d_hidden[rows] = swept.direction_tH.mul_(upstream[:, None])
            if plan.wants_head:
                gradient.add(rows, targets[rows], upstream, swept, swept.kept)
            return (swept.logps_t * upstream).sum()

        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, plan)
            gradient = HeadGradient(head)
            total = torch.zeros((), dtype=plan.accumulate, device=hidden.device)
            for rows in plan.tiles(len(hidden)):
                total += score(rows)
        ctx.grads = (d_hidden, gradient.weight, gradient.bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # in place, and handed over: the head's gradient is as large as the head, and is never held twice
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of linear_cross_entropy serve one backward pass")
        scaled = [None if grad is None else grad.mul_(upstream).to(dtype)
                  for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        return (*scaled, None, None, None)


class _RowLogps(torch.autograd.Function):
    """Log-probability of each row's target; keeps d log p / d h, and the blocks of a single tile."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=plan.accumulate, device=hidden.device)
        direction = torch.empty_like(hidden, dtype=_gradient_dtype(hidden)) if plan.wants_hidden else None
        ctx.swept = []
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, plan)
            for rows in plan.tiles(len(hidden)):
                keeps = plan.wants_head and plan.tile_rows >= len(hidden)
                swept = head.sweep(rows, targets[rows], keeps=keeps)
                logps[rows] = swept.logps_t
                if direction is not None:
                    direction[rows] = swept.direction_tH
                if plan.wants_head:
                    ctx.swept.append(replace(swept, direction_tH=None))
        ctx.save_for_backward(hidden, weight, bias, targets, direction)
        ctx.plan = plan
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, direction = ctx.saved_tensors
        plan: Plan = ctx.plan
        with torch.autocast(hidden.device.type, enabled=False):
            d_hidden = None if direction is None else (direction * upstream[:, None]).to(hidden.dtype)
            if not plan.wants_head:
                return d_hidden, None, None, None, None
            head = Head(hidden, weight, bias, plan)
            gradient = HeadGradient(head)
            for at, rows in enumerate(plan.tiles(len(hidden))):
                swept = ctx.swept[at]
                blocks = swept.kept or head.again(rows, targets[rows], swept.top_t)
                gradient.add(rows, targets[rows], upstream[rows], swept, blocks)
                ctx.swept[at] = replace(swept, kept=[])  # a second backward pass forms them again
        return (d_hidden, None if gradient.weight is None else gradient.weight.to(weight.dtype),
                None if gradient.bias is None else gradient.bias.to(bias.dtype), None, None)


def _above_the_mean(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
) -> Tensor:
    """Return z_t,y - mean_v z_tv of every row, (R,): times eps, what label smoothing adds to the loss."""
    transform = plan.transform
    with torch.autocast(hidden.device.type, enabled=False):
        h, w = hidden.to(plan.accumulate), weight.to(plan.accumulate)
        b = torch.zeros_like(w[:, 0]) if bias is None else bias.to(plan.accumulate)
        chosen = transform.apply((h * F.embedding(targets, w)).sum(1) + F.embedding(targets, b[:, None]).squeeze(1))
        if not transform.softcap:
            return chosen - (h @ w.mean(0) + b.mean()) * transform.scale

        def mean_of(rows_tH: Tensor) -> Tensor:
            return transform.apply(rows_tH @ w.t() + b).mean(1)

        size = tile_rows_for(len(h), len(w), h.device)
        means = [checkpoint(mean_of, h[rows], use_reentrant=False) for rows in pieces(len(h), size)]
        return chosen - torch.cat([*means, h.new_zeros(0)])
