"""Causal attention inside short segments by plain matrix products: what a processor does fastest.

    P = softmax(S),  S = scale Q K^T below the diagonal, -inf above it,  O = P V
    dV = P^T dO,  dP = dO V^T,  dS = P o (dP - rowsum(dO o O)),  dQ = scale dS K,  dK = scale dS^T Q
                                                     (Dao et al. 2022, arXiv 2205.14135, appendix B.2)

P is kept for the backward pass. Rows are taken in strips, so that most of what lies above the diagonal is never
computed; the query heads that share a key head are rows of one product. torch's own fused attention on processors takes
strips of 32 and 64 rows up to 768 tokens, which are too thin for its products. 16-bit inputs are taken in float32: a
16-bit product of a shape not met before costs a processor ten times as much as the next one, and lengths differ.
Knows nothing of transformers.

Shape legend: H query heads, K key/value heads, G = H / K, T tokens of the stream, D head width, N equal blocks, R rows
of a strip, B tokens that stand before a block, M keys that a strip sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.models.segments import Segments

MAX_TOKENS = 768
"""Tokens that a block may see at most: from here on the fused kernel takes thicker strips, and P grows large."""
STRIP_ROWS = 128


def serves(device: torch.device, segments: Segments, window: int | None) -> bool:
    """Return whether products are the way to go: a processor, short blocks, and a window that cuts nothing."""
    if device.type != "cpu":
        return False
    return segments.most_seen < MAX_TOKENS and (window is None or window >= segments.most_seen)


def attend_by_products(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments,
                       scale: float) -> Tensor:
    """Return causal attention inside the segments of a stream, (1, T, H, D), float32 or float64."""
    exact = torch.promote_types(query_1HTD.dtype, torch.float32)
    inputs = [one[0].to(exact) for one in (query_1HTD, key_1KTD, value_1KTD)]
    keeps = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    attended_THD: Tensor = _Products.apply(*inputs, segments, scale, keeps)
    return attended_THD[None]


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of N blocks of one shape.

    spans    where the rows of each block lie in the stream
    keys     where the keys of each block lie, up to its last row; those of the block that it continues stand first
    """

    spans: tuple[slice, ...]
    keys: tuple[tuple[slice, ...], ...]

    @property
    def num_rows(self) -> int:
        """Rows of each block, R."""
        return int(self.spans[0].stop - self.spans[0].start)


def strips_of(segments: Segments) -> Iterator[Strip]:
    """Cut every block into equal strips of at most STRIP_ROWS rows; blocks of one shape are cut together."""
    starts = [0]
    for length in segments.lengths:
        starts.append(starts[-1] + length)
    for before, members in segments.groups:
        length = segments.lengths[members[0]]
        number = -(-length // STRIP_ROWS)
        bounds = [length * at // number for at in range(number + 1)]
        for first, last in zip(bounds, bounds[1:], strict=False):
            own = [slice(starts[at], starts[at] + last) for at in members]
            keys: list[tuple[slice, ...]] = [(one,) for one in own]
            if before:
                roots = [starts[segments.parents[at]] for at in members]
                keys = [(slice(root, root + before), one) for root, one in zip(roots, own, strict=True)]
            yield Strip(tuple(slice(starts[at] + first, starts[at] + last) for at in members), tuple(keys))


class _Products(torch.autograd.Function):
    """Attention of a whole stream, strip by strip; returns (T, H, D)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, segments: Segments, scale: float, keeps: bool
    ) -> Tensor:
        heads, tokens, width = query_HTD.shape
        out_THD = query_HTD.new_empty(tokens, heads, width)
        kept: list[Tensor] = []
        strips = list(strips_of(segments))
        with torch.autocast("cpu", enabled=False):
            for strip in strips:
                rows = _take_rows(query_HTD, strip, len(key_KTD)) * scale
                weights = _weights(rows, _take_keys(key_KTD, strip), strip.num_rows)
                _put_rows(out_THD.transpose(0, 1), strip, torch.bmm(weights, _take_keys(value_KTD, strip)))
                kept += (rows, weights) if keeps else ()
        ctx.strips, ctx.scale = strips, scale
        if keeps:
            ctx.save_for_backward(key_KTD, value_KTD, out_THD, *kept)
        return out_THD

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream_THD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.autocast("cpu", enabled=False):
            return (*_gradients(upstream_THD, *ctx.saved_tensors, strips=ctx.strips, scale=ctx.scale), None, None, None)


def _gradients(upstream_THD: Tensor, key_KTD: Tensor, value_KTD: Tensor, out_THD: Tensor, *kept: Tensor,
               strips: Sequence[Strip], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV in the layout of Q, K and V; `kept` holds the scaled rows and P of each strip in turn."""
    delta_HT1 = (upstream_THD * out_THD).sum(-1, keepdim=True).transpose(0, 1)
    upstream_HTD = upstream_THD.transpose(0, 1)
    d_query_HTD = torch.empty_like(out_THD).transpose(0, 1)
    d_key_KTD, d_value_KTD = torch.zeros_like(key_KTD), torch.zeros_like(value_KTD)
    for strip, rows, weights in zip(strips, kept[::2], kept[1::2], strict=True):
        grads = _take_rows(upstream_HTD, strip, len(key_KTD))
        _add_keys(d_value_KTD, strip, torch.bmm(weights.transpose(1, 2), grads))
        d_scores = torch.bmm(grads, _take_keys(value_KTD, strip).transpose(1, 2))
        d_scores.sub_(_take_rows(delta_HT1, strip, len(key_KTD))).mul_(weights)
        _put_rows(d_query_HTD, strip, torch.bmm(d_scores, _take_keys(key_KTD, strip)))
        _add_keys(d_key_KTD, strip, torch.bmm(d_scores.transpose(1, 2), rows))
    return d_query_HTD.mul_(scale), d_key_KTD, d_value_KTD


def _weights(rows: Tensor, keys: Tensor, size: int) -> Tensor:
    """Return P of a strip of `size` rows, (N K, G R, M); the last `size` keys are those of the rows themselves."""
    scores = torch.bmm(rows, keys.transpose(1, 2))
    scores.view(len(scores), -1, size, scores.shape[2])[..., -size:].add_(_above_diagonal(size, scores.dtype))
    return torch.softmax(scores, -1)


@lru_cache(maxsize=256)
def _above_diagonal(size: int, dtype: torch.dtype) -> Tensor:
    """Return (R, R): -inf above the diagonal, 0 elsewhere."""
    with torch.inference_mode(False):
        return torch.full((size, size), -torch.inf, dtype=dtype, device="cpu").triu_(1)


def _take_rows(values_HTX: Tensor, strip: Strip, groups: int) -> Tensor:
    """Return the strip's rows, (N K, G R, X), head by head below one another."""
    pieces = [values_HTX[:, span] for span in strip.spans]
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return joined.reshape(len(pieces) * groups, -1, values_HTX.shape[2])


def _put_rows(target_HTX: Tensor, strip: Strip, rows: Tensor) -> None:
    heads, _, width = target_HTX.shape
    for span, piece in zip(strip.spans, rows.view(-1, heads, strip.num_rows, width), strict=True):
        target_HTX[:, span] = piece


def _take_keys(values_KTD: Tensor, strip: Strip) -> Tensor:
    """Return what the strip sees, (N K, M, D)."""
    joined = [torch.cat([values_KTD[:, one] for one in spans], dim=1) if len(spans) > 1 else values_KTD[:, spans[0]]
              for spans in strip.keys]
    return torch.cat(joined) if len(joined) > 1 else joined[0]


def _add_keys(target_KTD: Tensor, strip: Strip, values: Tensor) -> None:
    """Add (N K, M, D) to where the keys lie."""
    for spans, piece in zip(strip.keys, values.split(len(target_KTD)), strict=True):
        at = 0
        for one in spans:
            target_KTD[:, one].add_(piece[:, at:at + one.stop - one.start])
            at += one.stop - one.start
