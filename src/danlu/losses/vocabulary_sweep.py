"""One sweep over a vocabulary: normaliser, log-probability and d log p / d h of a tile of rows, block by block.

What a row has summed up so far shrinks by exp(m - m') when its maximum grows from m to m' (online softmax, Milakov &
Gimelshein 2018, arXiv 1805.02867). exp(z - m) of all blocks may be kept until the gradient of the head is formed: the
factors that differ from row to row, g_t exp(m - Z_t), multiply h, H numbers, and never the V logits. The target's own
share, 1 - p_y, is left out of the blocks and added in full precision: rounded to 16 bits beside a sure target nothing
else would be left.

Products are in the model's dtype; what lies between them, and the gradient of the head, is float32 (float64 for
float64 models). Shape legend: R rows, H hidden, V vocabulary, t rows of one tile, c words of one block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, e, log2

import torch
from torch import Tensor

from danlu.losses.logit_transform import LogitTransform

TILE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
MIN_TILE_ROWS = 768
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
"""Float32 logits of a block: what stays in a processor's cache; on a GPU a quarter of a tile."""
MAX_TILE_ROWS = {"cpu": 1024, "cuda": 2048}
"""More rows would make blocks of so few words that sums over the hidden size cost more than a hundredth."""
LOG2_E = log2(e)
BLOCK_WORDS = 64
"""A block holds a multiple of this many words."""


def tile_rows_for(num_rows: int, vocab_size: int, device: torch.device, *, at_least: int | None = None) -> int:
    """Return how many rows one tile holds: equal tiles whose float32 logits fit the device's byte budget.

    A tile has at least MIN_TILE_ROWS rows, as each tile reads and writes the head's whole gradient once, or `at_least`
    so many; and at most MAX_TILE_ROWS.
    """
    budget = _on(device, TILE_BYTES) // (4 * vocab_size)
    return equal_size(num_rows, min(max(at_least or MIN_TILE_ROWS, budget), most_rows(device)))


def live_logit_bytes(num_rows: int, vocab_size: int, device: torch.device, *, is_trained: bool) -> int:
    """Return the bytes of float32 logits that are alive at once: a tile of a head that trains, a block of a frozen one.
    """
    if not num_rows:
        return 0
    if is_trained:
        return 4 * vocab_size * tile_rows_for(num_rows, vocab_size, device)
    rows = equal_size(num_rows, most_rows(device))
    return 4 * rows * block_words(rows, vocab_size, device)


def block_words(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """Return how many words one block of a tile of so many rows holds."""
    return equal_size(vocab_size, _on(device, BLOCK_BYTES) // (4 * max(1, num_rows)), BLOCK_WORDS)


def most_rows(device: torch.device) -> int:
    """Return how many rows a tile may hold that keeps nothing."""
    return _on(device, MAX_TILE_ROWS)


def _on(device: torch.device, sizes: dict[str, int]) -> int:
    """Return the size for a device; other accelerators are taken for a GPU."""
    return sizes.get(device.type, sizes["cuda"])


def equal_size(number: int, most: int, multiple: int = 1) -> int:
    """Return the size of the fewest equal pieces of at most `most`; then it is rounded up to a multiple."""
    size = ceil(number / max(1, ceil(number / max(1, most))))
    return max(1, ceil(size / multiple) * multiple)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call computes: dtypes, tile size, and what wants gradients."""

    compute: torch.dtype
    accumulate: torch.dtype
    tile_rows: int
    wants_hidden: bool
    wants_weight: bool
    wants_bias: bool
    transform: LogitTransform

    @property
    def wants_head(self) -> bool:
        return self.wants_weight or self.wants_bias

    def tiles(self, num_rows: int) -> Iterator[slice]:
        return pieces(num_rows, self.tile_rows)


def pieces(number: int, size: int) -> Iterator[slice]:
    """Cut so many rows or words into pieces of at most `size`."""
    return (slice(at, min(at + size, number)) for at in range(0, number, size))


@dataclass(frozen=True, slots=True)
class Block:
    """exp(z - reference) times the bend of soft-capping, (t, c) in the compute dtype, of some words; 0 at targets."""

    words: slice
    values_tc: Tensor
    reference_t: Tensor


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep over the vocabulary leaves of one tile."""

    logps_t: Tensor
    top_t: Tensor
    """The largest logit, m."""
    sums_t: Tensor
    """sum_v exp(z_v - m)."""
    pull_t: Tensor
    """(1 - p_y) z'_y, by which d log p moves W_y and h toward each other."""
    direction_tH: Tensor | None
    """d log p / d h, where wanted."""
    kept: list[Block]


class Head:
    """The head's operands in the compute dtype, and the sweep over its words."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> None:
        self.plan = plan
        self.hidden, self.stored = hidden.to(plan.compute), weight
        self.bias = None if bias is None else bias.to(plan.accumulate)
        self.is_half = plan.compute == torch.float16  # it holds neither sums of exponentials nor a loss scale

    @cached_property
    def weight(self) -> Tensor:
        """W in the compute dtype; a backward pass whose blocks were kept never asks for it."""
        return self.stored.to(self.plan.compute)

    def blocks(self, num_rows: int) -> Iterator[slice]:
        """Cut the vocabulary for a tile of so many rows."""
        return pieces(len(self.stored), block_words(num_rows, len(self.stored), self.hidden.device))

    def logits(self, hidden_tH: Tensor, words: slice) -> tuple[Tensor, Tensor]:
        """Return a block of h W^T as the product made it, and the transformed logits, (t, c); both to be written on."""
        product = hidden_tH @ self.weight[words].t()
        logits = product.to(self.plan.accumulate)  # the same memory where the dtype is
        if self.bias is not None:
            logits += self.bias[words]
        return product, self.plan.transform.apply_(logits)

    def sweep(self, rows: slice, targets_t: Tensor, *, keeps: bool = False) -> Swept:
        """Go over the vocabulary once for a tile of rows."""
        plan, hidden_tH = self.plan, self.hidden[rows]
        top = torch.full_like(targets_t, -torch.inf, dtype=plan.accumulate)
        sums, chosen = torch.zeros_like(top), torch.zeros_like(top)
        pulled = torch.zeros_like(hidden_tH, dtype=plan.accumulate) if plan.wants_hidden else None
        kept = []
        for words in self.blocks(len(hidden_tH)):
            product, logits = self.logits(hidden_tH, words)
            at_t1, is_here_t1 = _places(targets_t, words)
            chosen += logits.gather(1, at_t1).where(is_here_t1, 0.0).squeeze(1)
            bend = plan.transform.bend(logits) if keeps or plan.wants_hidden else None
            before, top = top, torch.maximum(top, logits.amax(1))
            shrink, reference = (before - top).exp_(), top
            inside = _exponentiate_(logits, top).sum(1)
            sums = sums.mul_(shrink).add_(inside)
            if not keeps and pulled is None:
                continue
            if self.is_half:
                inside = inside.clamp_(min=torch.finfo(inside.dtype).tiny)
                logits, reference = logits.div_(inside[:, None]), top + inside.log()
            _leave_out(logits, at_t1, is_here_t1)
            _write(product, logits, bend)
            if pulled is not None:
                pulled.mul_(shrink[:, None])
                if self.is_half:
                    pulled += (product @ self.weight[words]) * inside[:, None]
                else:
                    _add_product(pulled, product, self.weight[words])
            if keeps:
                kept.append(Block(words, product, reference))
        return self._swept(targets_t, chosen, pulled, top, sums, kept)

    def _swept(self, targets_t: Tensor, chosen: Tensor, pulled: Tensor | None, top: Tensor, sums: Tensor,
               kept: list[Block]) -> Swept:
        scale, bend = self.plan.transform.scale, self.plan.transform.bend(chosen)
        logps = chosen - top - sums.log()
        pull = torch.expm1(logps).mul_(-scale)
        if bend is not None:
            pull *= bend
        if pulled is not None:
            pulled.mul_((-scale / sums)[:, None])
            pulled += self.weight[targets_t].to(pulled.dtype).mul_(pull[:, None])
        return Swept(logps, top, sums, pull, pulled, kept)

    def again(self, rows: slice, targets_t: Tensor, top_t: Tensor) -> Iterator[Block]:
        """Form the blocks of a tile once more, its largest logits known."""
        for words in self.blocks(len(top_t)):
            product, logits = self.logits(self.hidden[rows], words)
            bend = self.plan.transform.bend(logits)
            _leave_out(_exponentiate_(logits, top_t), *_places(targets_t, words))
            yield Block(words, _write(product, logits, bend), top_t)


class HeadGradient:
    """d loss / d W, (V, H), and d loss / d b, (V,), as they grow tile by tile; None where not wanted."""

    def __init__(self, head: Head) -> None:
        self._head, plan = head, head.plan
        self._is_empty = True
        make = torch.empty_like if len(head.hidden) else torch.zeros_like  # without rows nothing is written on it
        self.weight = make(head.stored, dtype=plan.accumulate) if plan.wants_weight else None
        self.bias = torch.zeros_like(head.bias) if plan.wants_bias and head.bias is not None else None

    def add(self, rows: slice, targets_t: Tensor, upstream_t: Tensor, swept: Swept, blocks: Iterable[Block]) -> None:
        """Add a tile's part, where upstream is d loss / d log p."""
        plan = self._head.plan
        hidden_tH = self._head.hidden[rows].to(plan.accumulate)
        upstream_t = upstream_t.to(plan.accumulate)
        shared_t = upstream_t / swept.sums_t * -plan.transform.scale
        for block in blocks:
            self._add_block(block, hidden_tH, (block.reference_t - swept.top_t).exp_().mul_(shared_t))
        self._is_empty = False
        factor_t = upstream_t * swept.pull_t
        if self.weight is not None:
            _add_rows(self.weight, targets_t, hidden_tH * factor_t[:, None])
        if self.bias is not None:
            _add_rows(self.bias, targets_t, factor_t)

    def _add_block(self, block: Block, hidden_tH: Tensor, factor_t: Tensor) -> None:
        values_ct, is_first = block.values_tc.t(), self._is_empty
        if self.bias is not None:
            self.bias[block.words] += values_ct.to(factor_t.dtype) @ factor_t
        if self.weight is None:
            return
        target = self.weight[block.words]
        if not self._head.is_half:
            _add_product(target, values_ct, (hidden_tH * factor_t[:, None]).to(values_ct.dtype), is_first=is_first)
            return
        largest = factor_t.abs().amax().clamp(min=torch.finfo(factor_t.dtype).tiny)
        part = values_ct @ (hidden_tH * (factor_t / largest)[:, None]).to(values_ct.dtype)
        target.copy_(part.to(target.dtype).mul_(largest) + (0.0 if is_first else target))


def _exponentiate_(logits_tc: Tensor, less_t: Tensor) -> Tensor:
    """Replace z by exp(z - less), as a power of two, which takes torch less than half the time on processors."""
    return logits_tc.sub_(less_t[:, None]).mul_(LOG2_E).exp2_()


def _places(targets_t: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Return each row's target as a column of this block, (t, 1), and whether it is one of its words."""
    at_t1 = (targets_t - words.start)[:, None]
    return at_t1.clamp(0, words.stop - words.start - 1), (at_t1 >= 0) & (at_t1 < words.stop - words.start)


def _leave_out(values_tc: Tensor, at_t1: Tensor, is_here_t1: Tensor) -> None:
    """Write 0 at the targets that are words of this block."""
    values_tc.scatter_(1, at_t1, values_tc.gather(1, at_t1).masked_fill_(is_here_t1, 0.0))


def _write(product_tc: Tensor, values_tc: Tensor, bend_tc: Tensor | None) -> Tensor:
    """Write values times the bend of soft-capping over the product that they came from."""
    return product_tc.copy_(values_tc if bend_tc is None else values_tc.mul_(bend_tc))


def _add_rows(target: Tensor, index_t: Tensor, values: Tensor) -> None:
    """Add values to rows, of which some repeat, in an order that is the same in every run."""
    if target.device.type == "cpu":
        target.index_add_(0, index_t, values)  # one by one; index_put_ would add in parallel
    else:
        target.index_put_((index_t,), values, accumulate=True)  # sorts; index_add_ would add in parallel


def _add_product(target: Tensor, one: Tensor, other: Tensor, *, is_first: bool = False) -> None:
    """Add a matrix product, whose dtype may be a narrower one; the first one replaces what is there."""
    if target.dtype == one.dtype:
        torch.addmm(target, one, other, beta=0.0 if is_first else 1.0, out=target)
    elif is_first:
        target.copy_(one @ other)
    else:
        target += one @ other
