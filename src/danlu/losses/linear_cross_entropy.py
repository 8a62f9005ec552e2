"""Vocabulary head and cross-entropy in one, over tiles of rows: logits never exist beyond one tile.

    z = cap(s (h W^T + b)),   cap(x) = c tanh(x / c)   (identity without soft-capping)
    nll_t = log sum_v exp(z_tv) - z_t,y            d nll_t / d z_tv = softmax(z_t)_v - [v = y]

Where every row's weight is known before the backward pass (pre-training, supervised fine-tuning) the gradients of h, W
and b are formed beside the loss while the tile is at hand: three matrix products, two with a frozen head. Where it is
not (preference and policy losses), `linear_logps` keeps one normaliser a row and forms each tile again in the backward
pass: four products, three with a frozen head. Where all rows are one tile it keeps that tile: three products, or two.
The idea of tiling the head: Wijmans et al. 2024, arXiv 2411.09009 (Cut Cross-Entropy); of gradients in the forward
pass: Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel).

Between the products a tile is worked on in parts that stay in a processor's cache, and stands in the model's dtype;
numbers of a part are float32 (float64 for float64 models). The weight of a row multiplies its hidden state and its
gradient, H numbers each, and never its V logits. Gradients of the head accumulate in float32 or float64 too.
Shape legend: R rows, H hidden, V vocabulary, t rows of one tile, p rows of one part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
MIN_TILE_ROWS = 256
PART_BYTES = {"cpu": 4 * 2**20, "cuda": 128 * 2**20}
"""Float32 numbers of a part: what stays in a processor's cache; on a GPU a quarter of a tile."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model family does to the head's output: multiply by `scale`, then squash into (-softcap, softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Return the transformed logits; differentiable."""
        logits = logits * self.scale if self.scale != 1.0 else logits
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place."""
        logits = logits.mul_(self.scale) if self.scale != 1.0 else logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap) if self.softcap else logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return d z / d (h W^T + b) at the transformed logits z: s (1 - (z / c)^2)."""
        if not self.softcap:
            return self.scale
        return logits.div(self.softcap).square_().neg_().add_(1.0).mul_(self.scale)


IDENTITY = LogitTransform()


def tile_rows_for(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """Return how many rows one tile holds: equal tiles whose float32 logits fit the device's byte budget.

    A tile has at least MIN_TILE_ROWS rows, as each tile reads and writes the head's whole gradient once.
    """
    budget = TILE_BYTES.get(device.type, TILE_BYTES["cuda"]) // (4 * vocab_size)
    most = max(MIN_TILE_ROWS, budget)
    num_tiles = max(1, ceil(num_rows / most))
    return max(1, ceil(num_rows / num_tiles))


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
    plan = _plan(hidden_RH, weight_VH, bias_V, transform, tile_rows, label_smoothing)
    total: Tensor = _WeightedNLL.apply(hidden_RH, weight_VH, bias_V, targets_R, weights_R, plan)
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
    """Return log p(y_t) of every row, (R,) float32; the backward pass forms the tiles again if there are several."""
    plan = _plan(hidden_RH, weight_VH, bias_V, transform, tile_rows, 0.0)
    logps: Tensor = _RowLogps.apply(hidden_RH, weight_VH, bias_V, targets_R, plan)
    return logps


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one call computes: dtypes, tile size, and which of (hidden, weight, bias) want gradients."""

    compute: torch.dtype
    accumulate: torch.dtype
    tile_rows: int
    wants: tuple[bool, bool, bool]
    transform: LogitTransform
    label_smoothing: float

    @property
    def wants_any(self) -> bool:
        return any(self.wants)

    def tiles(self, num_rows: int) -> Iterator[slice]:
        return pieces(num_rows, self.tile_rows)


def pieces(num_rows: int, size: int) -> Iterator[slice]:
    """Cut rows into pieces of at most `size`."""
    return (slice(at, min(at + size, num_rows)) for at in range(0, num_rows, size))


def part_rows_for(vocab_size: int, device: torch.device) -> int:
    """Return how many rows of a tile are worked on at once."""
    return max(1, PART_BYTES.get(device.type, PART_BYTES["cuda"]) // (4 * vocab_size))


def _plan(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, tile_rows: int | None,
    label_smoothing: float,
) -> _Plan:
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        compute = torch.get_autocast_dtype(kind)
    else:
        compute = torch.promote_types(hidden.dtype, weight.dtype)
    grad = torch.is_grad_enabled()
    wants = (grad and hidden.requires_grad, grad and weight.requires_grad,
             grad and bias is not None and bias.requires_grad)
    accumulate = torch.float64 if compute == torch.float64 else torch.float32
    rows = tile_rows or tile_rows_for(len(hidden), len(weight), hidden.device)
    return _Plan(compute, accumulate, rows, wants, transform, label_smoothing)


class _Tiles:
    """The head's operands in the compute dtype, the gradients being accumulated, and the products between them."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> None:
        self.plan = plan
        self.hidden, self.weight = hidden.to(plan.compute), weight.to(plan.compute)
        self.bias = None if bias is None else bias.to(plan.accumulate)
        wants_hidden, wants_weight, wants_bias = plan.wants
        # float16 keeps too few bits for a gradient that is scaled only later
        self.kept = plan.accumulate if plan.compute == torch.float16 else plan.compute
        self.d_hidden = torch.empty_like(hidden, dtype=self.kept) if wants_hidden else None
        self.wants_weight = wants_weight
        self.d_weight: Tensor | None = None  # made by the first tile, which spares a pass that fills it with zeros
        self.d_bias = torch.zeros_like(weight[:, 0], dtype=plan.accumulate) if wants_bias else None

    def product(self, rows: slice) -> Tensor:
        """Return one tile of h W^T in the compute dtype."""
        return self.hidden[rows] @ self.weight.t()

    def parts(self, tile: Tensor) -> Iterator[slice]:
        """Cut a tile's rows into parts."""
        return pieces(len(tile), part_rows_for(tile.shape[1], tile.device))

    def logits(self, product: Tensor) -> Tensor:
        """Return the transformed logits of a part, float32 or float64, in memory of their own."""
        logits = product.to(self.plan.accumulate, copy=True)
        if self.bias is not None:
            logits += self.bias
        return self.plan.transform.apply_(logits)

    def keep(self, target: Tensor, d_logits: Tensor, slope: Tensor | float, scales_p1: Tensor) -> None:
        """Write a part's gradient before the transform, its rows yet unscaled, over the part's product."""
        if isinstance(slope, Tensor) or slope != 1.0:
            d_logits = d_logits.mul_(slope)
        if self.d_bias is not None:
            self.d_bias += (d_logits * scales_p1).sum(0)
        target.copy_(d_logits)

    def accumulate(self, rows: slice, d_product: Tensor, scales_t1: Tensor) -> None:
        """Push one tile's gradient into hidden states and weight, each row times its scale."""
        if self.d_hidden is not None:
            self.d_hidden[rows] = (d_product @ self.weight).to(self.kept).mul_(scales_t1)
        if not self.wants_weight:
            return
        if self.plan.compute == torch.float16:  # a loss scale would carry hidden states out of range
            largest = scales_t1.abs().amax().clamp(min=torch.finfo(scales_t1.dtype).tiny)
            scaled = (self.hidden[rows] * (scales_t1 / largest)).to(d_product.dtype)
            part = (d_product.t() @ scaled).to(self.plan.accumulate).mul_(largest)
            self.d_weight = part if self.d_weight is None else self.d_weight.add_(part)
            return
        scaled = (self.hidden[rows] * scales_t1).to(d_product.dtype)
        if self.d_weight is None:
            self.d_weight = (d_product.t() @ scaled).to(self.plan.accumulate)
        elif self.d_weight.dtype == d_product.dtype:
            torch.addmm(self.d_weight, d_product.t(), scaled, out=self.d_weight)
        else:
            self.d_weight += d_product.t() @ scaled

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.wants_weight and self.d_weight is None:
            self.d_weight = torch.zeros_like(self.weight, dtype=self.plan.accumulate)
        return self.d_hidden, self.d_weight, self.d_bias


def _exponentiate_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace a part by exp(z - max z); return its row sums and row maxima, both (p, 1)."""
    top = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    return exponentials.sum(1, keepdim=True), top


class _WeightedNLL(torch.autograd.Function):
    """Weighted sum of negative log-likelihoods with its gradients formed in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, plan: _Plan
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _Tiles(hidden, weight, bias, plan)
            total = torch.zeros((), dtype=plan.accumulate, device=hidden.device)
            for rows in plan.tiles(len(hidden)):
                total += _nll_tile(tiles, rows, targets[rows, None], weights[rows, None].to(plan.accumulate))
        ctx.grads = tiles.gradients()
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


def _nll_tile(tiles: _Tiles, rows: slice, targets_t1: Tensor, weights_t1: Tensor) -> Tensor:
    """Return one tile's weighted loss and accumulate its gradients."""
    plan, product = tiles.plan, tiles.product(rows)
    losses_t1 = torch.empty_like(weights_t1)
    for part in tiles.parts(product):
        losses_t1[part] = _nll_part(tiles, product[part], targets_t1[part], weights_t1[part])
    if plan.wants_any:
        tiles.accumulate(rows, product, weights_t1)
    return (losses_t1 * weights_t1).sum()


def _nll_part(tiles: _Tiles, product: Tensor, targets_p1: Tensor, weights_p1: Tensor) -> Tensor:
    """Return a part's losses, (p, 1); its product becomes its gradient, rows not yet weighted."""
    plan, smoothing = tiles.plan, tiles.plan.label_smoothing
    logits = tiles.logits(product)
    goal = (1.0 - smoothing) * logits.gather(1, targets_p1)
    if smoothing:
        goal += smoothing * logits.mean(1, keepdim=True)
    slope = plan.transform.slope(logits) if plan.wants_any else 1.0
    sums, top = _exponentiate_(logits)
    if plan.wants_any:
        d_logits = logits.div_(sums)
        d_logits.scatter_add_(1, targets_p1, torch.full_like(sums, smoothing - 1.0))
        if smoothing:
            d_logits -= smoothing / logits.shape[1]
        tiles.keep(product, d_logits, slope, weights_p1)
    return sums.log() + top - goal


class _RowLogps(torch.autograd.Function):
    """Log-probability of each row's target; keeps one normaliser a row, and a single tile as it is."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: _Plan
    ) -> Tensor:
        logps = torch.empty(len(hidden), dtype=plan.accumulate, device=hidden.device)
        normalisers = torch.empty_like(logps)
        ctx.tile = None
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _Tiles(hidden, weight, bias, _without_gradients(plan))
            for rows in plan.tiles(len(hidden)):
                product = tiles.product(rows)
                for part in tiles.parts(product):
                    inside = slice(rows.start + part.start, rows.start + part.stop)
                    logits = tiles.logits(product[part])
                    chosen = logits.gather(1, targets[inside, None]).squeeze(1)
                    sums, top = _exponentiate_(logits)
                    normalisers[inside] = (sums.log() + top).squeeze(1)
                    logps[inside] = chosen - normalisers[inside]
                if plan.wants_any and len(product) == len(hidden):
                    ctx.tile = product
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.plan = plan
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        plan: _Plan = ctx.plan
        kept, ctx.tile = ctx.tile, None  # used up in place; a second backward pass forms it again
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _Tiles(hidden, weight, bias, plan)
            for rows in plan.tiles(len(hidden)):
                product = tiles.product(rows) if kept is None else kept
                scales_t1 = upstream[rows, None].to(plan.accumulate)
                for part in tiles.parts(product):
                    inside = slice(rows.start + part.start, rows.start + part.stop)
                    logits = tiles.logits(product[part])
                    slope = plan.transform.slope(logits)
                    d_logits = logits.sub_(normalisers[inside, None]).exp_().neg_()
                    d_logits.scatter_add_(1, targets[inside, None], torch.ones_like(scales_t1[part]))
                    tiles.keep(product[part], d_logits, slope, scales_t1[part])
                tiles.accumulate(rows, product, scales_t1)
        operands = (hidden, weight, bias)
        grads = [None if grad is None or operand is None else grad.to(operand.dtype)
                 for grad, operand in zip(tiles.gradients(), operands, strict=True)]
        return (*grads, None, None)


def _without_gradients(plan: _Plan) -> _Plan:
    return _Plan(plan.compute, plan.accumulate, plan.tile_rows, (False, False, False), plan.transform, 0.0)
