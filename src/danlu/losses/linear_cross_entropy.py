"""Vocabulary head and cross-entropy in one, block by block of the vocabulary: logits never exist beyond one tile.

    z = cap(s (h W^T + b)),   cap(x) = c tanh(x / c)   (identity without soft-capping)
    log p_t = z_t,y - Z_t,    Z_t = log sum_v exp(z_tv)
    d log p_t / d h_t = z'_t,y W_y - sum_v p_tv z'_tv W_v,    p_tv = exp(z_tv - Z_t),   z' = s (1 - (z / c)^2)

One sweep over blocks of words, each small enough to stay in a processor's cache, gives Z, z_y and d log p / d h at
once: what a row has summed up so far shrinks by exp(m - m') when its maximum grows from m to m' (online softmax,
Milakov & Gimelshein 2018, arXiv 1805.02867). A frozen head therefore costs two matrix products a row and keeps
nothing. A trained one needs a third, d W = sum_t g_t d log p_t / d W, once Z is known: exp(z - m) of all blocks stays
until then for a tile of rows, and g_t exp(m - Z_t), which differ from row to row, multiply h, H numbers, and never the
V logits. Where g is known before the backward pass (pre-training, supervised fine-tuning) that is at once; where it is
not (preference and policy losses), `linear_logps` keeps the blocks if all rows are one tile and forms them again in
the backward pass if not: four products.
The idea of tiling the head: Wijmans et al. 2024, arXiv 2411.09009 (Cut Cross-Entropy); of gradients in the forward
pass: Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel).

Products are in the model's dtype; what lies between them, and the gradient of the head, is float32 (float64 for
float64 models).
Shape legend: R rows, H hidden, V vocabulary, t rows of one tile, c words of one block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil, e, log2
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from danlu.losses.logit_transform import IDENTITY, LogitTransform

TILE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
MIN_TILE_ROWS = 768
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
"""Float32 logits of a block: what stays in a processor's cache; on a GPU a quarter of a tile."""
MAX_TILE_ROWS = {"cpu": 1024, "cuda": 2048}
"""More rows would make blocks of so few words that sums over the hidden size cost more than a hundredth."""
LOG2_E = log2(e)
BLOCK_WORDS = 64
"""A block holds a multiple of this many words."""

def tile_rows_for(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """Return how many rows one tile holds: equal tiles whose float32 logits fit the device's byte budget.

    A tile has at least MIN_TILE_ROWS rows, as each tile reads and writes the head's whole gradient once.
    """
    budget = TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (4 * vocab_size)
    return _equal(num_rows, min(max(MIN_TILE_ROWS, budget), _most_rows(device)))


def _most_rows(device: torch.device) -> int:
    return MAX_TILE_ROWS.get(device.type, MAX_TILE_ROWS["cuda"])


def _equal(number: int, most: int, multiple: int = 1) -> int:
    """Return the size of the fewest equal pieces of at most `most`; then it is rounded up to a multiple."""
    size = ceil(number / max(1, ceil(number / max(1, most))))
    return max(1, ceil(size / multiple) * multiple)


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
    over the vocabulary. Without grad mode, or with nothing to train, no gradient work is done.
    """
    plan = _plan(hidden_RH, weight_VH, bias_V, transform, tile_rows)
    total: Tensor = _WeightedNLL.apply(hidden_RH, weight_VH, bias_V, targets_R, weights_R, plan)
    if label_smoothing:
        above_R = _above_the_mean(hidden_RH, weight_VH, bias_V, targets_R, plan)
        total = total + label_smoothing * (above_R * weights_R).sum()
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one call computes: dtypes, tile size, and which of (hidden, head) want gradients."""

    compute: torch.dtype
    accumulate: torch.dtype
    tile_rows: int
    wants_hidden: bool
    wants_head: bool
    transform: LogitTransform

    def tiles(self, num_rows: int) -> Iterator[slice]:
        return _pieces(num_rows, self.tile_rows)


def _pieces(number: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, number)) for at in range(0, number, size))


def _plan(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, tile_rows: int | None
) -> _Plan:
    device = hidden.device
    if torch.is_autocast_enabled(device.type):
        compute = torch.get_autocast_dtype(device.type)
    else:
        compute = torch.promote_types(hidden.dtype, weight.dtype)
    grad = torch.is_grad_enabled()
    wants_head = grad and (weight.requires_grad or (bias is not None and bias.requires_grad))
    if not tile_rows:
        tile_rows = tile_rows_for(len(hidden), len(weight), device) if wants_head \
            else _equal(len(hidden), _most_rows(device))
    accumulate = torch.float64 if compute == torch.float64 else torch.float32
    return _Plan(compute, accumulate, tile_rows, grad and hidden.requires_grad, wants_head, transform)


@dataclass(frozen=True, slots=True)
class _Block:
    """exp(z - reference) times the bend of soft-capping, (t, c) in the compute dtype, of some words."""

    words: slice
    values_tc: Tensor
    reference_t: Tensor


@dataclass(frozen=True, slots=True)
class _Swept:
    """What a sweep over the vocabulary leaves of one tile."""

    logps_t: Tensor
    normaliser_t: Tensor
    slope_t: Tensor | float
    """d z / d (h W^T + b) of the targets."""
    direction_tH: Tensor | None
    """d log p / d h, where wanted."""
    kept: list[_Block]


class _Head:
    """The head's operands in the compute dtype, the sweep over its words, and its gradient as it grows."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> None:
        self.plan = plan
        self.hidden, self.weight = hidden.to(plan.compute), weight.to(plan.compute)
        self.bias = None if bias is None else bias.to(plan.accumulate)
        self.is_half = plan.compute == torch.float16  # it holds neither sums of exponentials nor a loss scale
        self.d_weight: Tensor | None = None
        self.d_bias: Tensor | None = None

    def blocks(self, num_rows: int) -> Iterator[slice]:
        """Cut the vocabulary for a tile of so many rows."""
        device = self.hidden.device
        most = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"]) // (4 * max(1, num_rows))
        return _pieces(len(self.weight), _equal(len(self.weight), most, BLOCK_WORDS))

    def logits(self, hidden_tH: Tensor, words: slice) -> tuple[Tensor, Tensor]:
        """Return a block of h W^T as the product made it, and the transformed logits, (t, c); both to be written on."""
        product = hidden_tH @ self.weight[words].t()
        logits = product.to(self.plan.accumulate)  # the same memory where the dtype is
        if self.bias is not None:
            logits += self.bias[words]
        return product, self.plan.transform.apply_(logits)

    def sweep(self, rows: slice, targets_t: Tensor, *, keeps: bool = False) -> _Swept:
        """Go over the vocabulary once for a tile of rows."""
        plan, hidden_tH = self.plan, self.hidden[rows]
        top = torch.full_like(targets_t, -torch.inf, dtype=plan.accumulate)
        sums, chosen = torch.zeros_like(top), torch.zeros_like(top)
        pulled = torch.zeros_like(hidden_tH, dtype=plan.accumulate) if plan.wants_hidden else None
        kept = []
        for words in self.blocks(len(hidden_tH)):
            product, logits = self.logits(hidden_tH, words)
            chosen += _picked(logits, targets_t - words.start)
            bend = plan.transform.bend(logits) if keeps or plan.wants_hidden else None
            before, top = top, torch.maximum(top, logits.amax(1))
            shrink, reference = (before - top).exp_(), top
            inside = _exponentiate_(logits, top).sum(1)
            sums = sums.mul_(shrink).add_(inside)
            if self.is_half:
                logits, reference = logits.div_(inside[:, None]), top + inside.log()
            if keeps or plan.wants_hidden:
                product.copy_(logits if bend is None else logits.mul_(bend))
            if pulled is not None:
                pulled.mul_(shrink[:, None])
                if self.is_half:
                    pulled += (product @ self.weight[words]) * inside[:, None]
                else:
                    _add_product(pulled, product, self.weight[words])
            if keeps:
                kept.append(_Block(words, product, reference))
        normaliser = sums.log().add_(top)
        return self._swept(targets_t, chosen, normaliser, pulled, top, kept)

    def _swept(self, targets_t: Tensor, chosen: Tensor, normaliser: Tensor, pulled: Tensor | None, top: Tensor,
               kept: list[_Block]) -> _Swept:
        scale, bend = self.plan.transform.scale, self.plan.transform.bend(chosen)
        slope = scale if bend is None else bend.mul_(scale)
        if pulled is not None:
            pulled.mul_((top - normaliser).exp_().mul_(-scale)[:, None])
            chosen_words = self.weight[targets_t].to(pulled.dtype)
            pulled += chosen_words.mul_(slope if bend is None else bend[:, None])
        return _Swept(chosen - normaliser, normaliser, slope, pulled, kept)

    def again(self, rows: slice, normaliser_t: Tensor) -> Iterator[_Block]:
        """Form the blocks of a tile once more, its normalisers known."""
        for words in self.blocks(len(normaliser_t)):
            product, logits = self.logits(self.hidden[rows], words)
            bend = self.plan.transform.bend(logits)
            _exponentiate_(logits, normaliser_t)
            yield _Block(words, product.copy_(logits if bend is None else logits.mul_(bend)), normaliser_t)

    def push(self, rows: slice, targets_t: Tensor, upstream_t: Tensor, swept: _Swept, blocks: Iterable[_Block]) -> None:
        """Add a tile's part of d W and d b, where upstream is d loss / d log p."""
        is_first, hidden_tH = self.d_weight is None, self.hidden[rows].to(self.plan.accumulate)
        if self.d_weight is None:
            self.d_weight = torch.empty_like(self.weight, dtype=self.plan.accumulate)
            self.d_bias = torch.zeros_like(self.bias) if self.bias is not None else None
        for block in blocks:
            factor_t = (block.reference_t - swept.normaliser_t).exp_().mul_(upstream_t).mul_(-self.plan.transform.scale)
            self._push_block(block, hidden_tH, factor_t, is_first=is_first)
        factor_t = upstream_t * swept.slope_t
        self.d_weight.index_put_((targets_t,), hidden_tH * factor_t[:, None], accumulate=True)
        if self.d_bias is not None:
            self.d_bias.index_put_((targets_t,), factor_t, accumulate=True)

    def _push_block(self, block: _Block, hidden_tH: Tensor, factor_t: Tensor, *, is_first: bool) -> None:
        assert self.d_weight is not None
        target, values_ct = self.d_weight[block.words], block.values_tc.t()
        if self.d_bias is not None:
            self.d_bias[block.words] += values_ct.to(factor_t.dtype) @ factor_t
        if not self.is_half:
            _add_product(target, values_ct, (hidden_tH * factor_t[:, None]).to(values_ct.dtype), is_first=is_first)
            return
        largest = factor_t.abs().amax().clamp(min=torch.finfo(factor_t.dtype).tiny)
        part = values_ct @ (hidden_tH * (factor_t / largest)[:, None]).to(values_ct.dtype)
        target.copy_(part.to(target.dtype).mul_(largest) + (0.0 if is_first else target))

    def gradients(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return d W and d b in the accumulating dtype, None where nobody wants them."""
        d_weight, d_bias = self.d_weight, self.d_bias
        if self.plan.wants_head and d_weight is None:  # no rows
            d_weight = torch.zeros_like(self.weight, dtype=self.plan.accumulate)
            d_bias = None if self.bias is None else torch.zeros_like(self.bias)
        wants_bias = bias is not None and bias.requires_grad
        return d_weight if weight.requires_grad else None, d_bias if wants_bias else None


def _exponentiate_(logits_tc: Tensor, less_t: Tensor) -> Tensor:
    """Replace z by exp(z - less), as a power of two, which takes torch less than half the time on processors."""
    return logits_tc.sub_(less_t[:, None]).mul_(LOG2_E).exp2_()


def _picked(logits_tc: Tensor, at_t: Tensor) -> Tensor:
    """Return each row's logit at its word of this block, 0 where the word is in another."""
    picked = logits_tc.gather(1, at_t.clamp(0, logits_tc.shape[1] - 1)[:, None]).squeeze(1)
    return torch.where((at_t >= 0) & (at_t < logits_tc.shape[1]), picked, 0.0)


def _add_product(target: Tensor, one: Tensor, other: Tensor, *, is_first: bool = False) -> None:
    """Add a matrix product, whose dtype may be a narrower one; the first one replaces what is there."""
    if target.dtype == one.dtype:
        torch.addmm(target, one, other, beta=0.0 if is_first else 1.0, out=target)
    elif is_first:
        target.copy_(one @ other)
    else:
        target += one @ other


class _WeightedNLL(torch.autograd.Function):
    """Weighted sum of negative log-likelihoods with its gradients formed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, plan: _Plan
    ) -> Tensor:
        # float16 keeps too few bits for a gradient that is scaled only later
        kept = plan.accumulate if plan.compute == torch.float16 else hidden.dtype
        d_hidden = torch.empty_like(hidden, dtype=kept) if plan.wants_hidden else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, plan)
            total = torch.zeros((), dtype=plan.accumulate, device=hidden.device)
            for rows in plan.tiles(len(hidden)):
                swept = head.sweep(rows, targets[rows], keeps=plan.wants_head)
                upstream = weights[rows].to(plan.accumulate).neg()
                total += (swept.logps_t * upstream).sum()
                if d_hidden is not None and swept.direction_tH is not None:
                    d_hidden[rows] = swept.direction_tH.mul_(upstream[:, None])
                if plan.wants_head:
                    head.push(rows, targets[rows], upstream, swept, swept.kept)
        ctx.grads = (d_hidden, *head.gradients(weight, bias))
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
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: _Plan
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=plan.accumulate, device=hidden.device)
        ctx.direction = torch.empty_like(hidden) if plan.wants_hidden else None
        ctx.swept = []
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, plan)
            for rows in plan.tiles(len(hidden)):
                keeps = plan.wants_head and plan.tile_rows >= len(hidden)
                swept = head.sweep(rows, targets[rows], keeps=keeps)
                logps[rows] = swept.logps_t
                if ctx.direction is not None:
                    ctx.direction[rows] = swept.direction_tH
                if plan.wants_head:
                    ctx.swept.append(replace(swept, direction_tH=None))
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.plan = plan
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets = ctx.saved_tensors
        plan: _Plan = ctx.plan
        upstream = upstream.to(plan.accumulate)
        with torch.autocast(hidden.device.type, enabled=False):
            d_hidden = None if ctx.direction is None else (ctx.direction * upstream[:, None]).to(hidden.dtype)
            if not plan.wants_head:
                return d_hidden, None, None, None, None
            head = _Head(hidden, weight, bias, plan)
            for rows, swept in zip(plan.tiles(len(hidden)), ctx.swept, strict=True):
                blocks = swept.kept or head.again(rows, swept.normaliser_t)
                head.push(rows, targets[rows], upstream[rows], swept, blocks)
            d_weight, d_bias = head.gradients(weight, bias)
        return (d_hidden, None if d_weight is None else d_weight.to(weight.dtype),
                None if d_bias is None else d_bias.to(bias.dtype), None, None)


def _above_the_mean(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: _Plan
) -> Tensor:
    """Return z_t,y - mean_v z_tv of every row, (R,): times eps, what label smoothing adds to the loss."""
    transform = plan.transform
    with torch.autocast(hidden.device.type, enabled=False):
        h, w = hidden.to(plan.accumulate), weight.to(plan.accumulate)
        b = torch.zeros_like(w[:, 0]) if bias is None else bias.to(plan.accumulate)
        chosen = transform.apply((h * w[targets]).sum(1) + b[targets])
        if not transform.softcap:
            return chosen - (h @ w.mean(0) + b.mean()) * transform.scale

        def mean_of(rows_tH: Tensor) -> Tensor:
            return transform.apply(rows_tH @ w.t() + b).mean(1)

        means = [checkpoint(mean_of, h[rows], use_reentrant=False) for rows in plan.tiles(len(h))]
        return chosen - torch.cat([*means, h.new_zeros(0)])
