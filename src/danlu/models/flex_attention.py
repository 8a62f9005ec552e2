"""Causal attention inside segments in one call for a whole stream, by torch's flex attention (arXiv 2412.05496).

On CUDA the call is compiled once for streams of every length and layout: layouts, windows and factors reach it as
tensors, so none of them is a reason to compile anew. On a processor it runs as it stands, forward only. The stream is
filled up to whole tiles; what was added is a segment of its own. Knows nothing of transformers.

Shape legend: H query heads, K key/value heads, T tokens, D head width, N tiles, S tokens of a tile, P = N S tokens
with those that were added.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from danlu.models.attention_rule import Rule, kernel_dtype
from danlu.models.segments import Segments

TILE = 128
LEAST_TILES = 3
"""torch takes a size of 1 for a constant and equal sizes for one; few models have 3 heads."""
MASKS_KEPT = 16
HEAD_WIDTHS = (16, 32, 64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHORT_ROW, SHARED_FOR_SHORT, SHARED_FOR_LONG = 256, 99 * 1024, 163 * 1024
"""Bytes of shared memory that torch's tiles take when a row of a head has up to SHORT_ROW bytes, and when it has more;
GPUs older than Ampere have less than the first, its smaller models less than the second."""


class Operands(NamedTuple):
    """What the compiled call is given.

    query, key, value  (N, S, H, D), (N, S, K, D), (N, S, K, D)
    mask               which keys each token sees
    factor, cap        (H,) z = cap tanh(factor q k^T), or factor q k^T without a cap
    sinks              (H,) or None
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: BlockMask
    factor: Tensor
    cap: Tensor | None
    sinks: Tensor | None


def serves(query: Tensor, value: Tensor, rule: Rule) -> bool:
    """Return whether the compiled call takes these tensors: a GPU that its tiles fit, no dropout."""
    device, dtype, widths = query.device, kernel_dtype(query), (query.shape[-1], value.shape[-1])
    if device.type != "cuda" or rule.dropout > 0.0 or dtype not in DTYPES or not set(widths) <= set(HEAD_WIDTHS):
        return False
    # absent under ROCm, whose tiles are others
    shared: int = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return shared >= (SHARED_FOR_SHORT if max(widths) * dtype.itemsize <= SHORT_ROW else SHARED_FOR_LONG)


def attend_flex(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) under any rule without dropout; gradients on CUDA only."""
    way = _compiled() if query_1HTD.device.type == "cuda" else attend_tiles
    given = operands(query_1HTD, key_1KTD, value_1KTD, segments, rule)
    with torch.autocast(query_1HTD.device.type, enabled=False):
        out_PHD = way(*given)
    return out_PHD[None, :query_1HTD.shape[2]]


def operands(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Operands:
    """Return what `attend_tiles` computes with."""
    device, dtype = query_1HTD.device, kernel_dtype(query_1HTD)
    heads, width = query_1HTD.shape[1], query_1HTD.shape[3]
    mask = mask_of(segments, rule.window, device)
    query, key, value = (_in_tiles(x.to(dtype), mask.kv_num_blocks.shape[-1])
                         for x in (query_1HTD, key_1KTD, value_1KTD))
    scale = width ** -0.5 if rule.scale is None else rule.scale
    exact = torch.promote_types(dtype, torch.float32)
    cap_H = None if rule.softcap is None else _per_head(rule.softcap, heads, exact, device)
    factor_H = _per_head(scale if rule.softcap is None else scale / rule.softcap, heads, exact, device)
    return Operands(query, key, value, mask, factor_H, cap_H, rule.sinks)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(attend_tiles, dynamic=True)
    return compiled


def attend_tiles(query_NSHD: Tensor, key_NSKD: Tensor, value_NSKD: Tensor, mask: BlockMask, factor_H: Tensor,
                 cap_H: Tensor | None, sinks_H: Tensor | None) -> Tensor:
    """Return (P, H, D): softmax(z) v, and with a sink its weight taken off.

    sum_s exp(z_s) / (exp(sink) + sum_s exp(z_s)) = sigmoid(log sum_s exp(z_s) - sink)
    """
    if query_NSHD.shape[1] != TILE:  # tells the compiler that P is a multiple of a tile
        raise ValueError(f"tiles of {query_NSHD.shape[1]} tokens instead of {TILE}")

    def score(product: Tensor, batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        scaled = product * factor_H[head]
        return scaled if cap_H is None else torch.tanh(scaled) * cap_H[head]

    query, key, value = (x.flatten(0, 1).transpose(0, 1)[None] for x in (query_NSHD, key_NSKD, value_NSKD))
    is_grouped = query.shape[1] != key.shape[1]
    if sinks_H is None:
        out = flex_attention(query, key, value, score, mask, scale=1.0, enable_gqa=is_grouped)
    else:
        plain, aux = flex_attention(query, key, value, score, mask, scale=1.0, enable_gqa=is_grouped,
                                    return_aux=AuxRequest(lse=True))
        kept_1HP = torch.sigmoid(aux.lse - sinks_H.to(aux.lse.dtype)[:, None])
        out = (plain * kept_1HP[..., None]).to(plain.dtype)
    return out.squeeze(0).transpose(0, 1)


def _in_tiles(values_1HTX: Tensor, tiles: int) -> Tensor:
    """Return (N, S, H, X), filled up with zeros and laid out alike for every stream, which the compiler asks for."""
    values_THX = values_1HTX[0].transpose(0, 1)
    zeros = values_THX.new_zeros(tiles * TILE - len(values_THX), *values_THX.shape[1:])
    return torch.cat([values_THX, zeros]).unflatten(0, (tiles, TILE))


@lru_cache(maxsize=64)
def _per_head(value: float, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (H,) equal numbers; a number as such would be compiled in."""
    with torch.inference_mode(False):
        return torch.full((heads,), value, dtype=dtype, device=device)


def mask_of(segments: Segments, window: int | None, device: torch.device) -> BlockMask:
    """Return which keys each token of the stream sees; the same object for the same layout, window and device."""
    window = None if window is None or window >= segments.most_seen else window
    return _mask(segments.lengths, segments.parents if any(segments.prefixes) else (), window, device)


@lru_cache(maxsize=MASKS_KEPT)
def _mask(lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):
        own_from_P, before_from_P, before_to_P = (x.to(device) for x in _spans(lengths, parents, window))

        def sees(batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
            is_own = (key_at >= own_from_P[query_at]) & (key_at <= query_at)
            return is_own | ((key_at >= before_from_P[query_at]) & (key_at < before_to_P[query_at]))

        seen_NN = _seen_in_tiles(own_from_P, before_from_P, before_to_P)
        tiles, some_NN, all_NN = len(seen_NN), seen_NN > 0, seen_NN == TILE * TILE
        return BlockMask.from_kv_blocks(
            *_listed(some_NN & ~all_NN), *_listed(all_NN), BLOCK_SIZE=TILE, mask_mod=sees,
            seq_lengths=(tiles * TILE, tiles * TILE))


def _spans(lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return from where each token sees its own block, and from where to where the one it continues, (P,) int32 each.

    A token at position p of its segment sees the positions above p - window: in its own block, which begins at
    position b, all from b on, and in the block it continues, whose b tokens are positions 0 to b - 1.
    """
    tokens = sum(lengths)
    tiles = max(LEAST_TILES, -(-tokens // TILE))
    sizes = torch.tensor([*lengths, tiles * TILE - tokens])
    parent = torch.tensor([*(parents or (-1,) * len(lengths)), -1])
    starts = sizes.cumsum(0) - sizes
    before = torch.where(parent >= 0, sizes[parent], 0)
    block_P = torch.arange(len(sizes)).repeat_interleave(sizes)
    start_P, before_P = starts[block_P], before[block_P]
    position_P = torch.arange(len(block_P)) - start_P + before_P
    first_P = torch.zeros_like(position_P) if window is None else (position_P - window + 1).clamp(min=0)
    root_P = torch.where(before_P > 0, starts[parent][block_P], 0)
    own_from_P = start_P + (first_P - before_P).clamp(min=0)
    before_from_P = root_P + torch.minimum(first_P, before_P)
    return own_from_P.to(torch.int32), before_from_P.to(torch.int32), (root_P + before_P).to(torch.int32)


def _seen_in_tiles(own_from_P: Tensor, before_from_P: Tensor, before_to_P: Tensor) -> Tensor:
    """Return (N, N): how many pairs of a token in the row's tile and a key in the column's are seen."""
    to_P = torch.arange(1, len(own_from_P) + 1, device=own_from_P.device, dtype=torch.int32)
    edges_N = to_P[::TILE] - 1

    def overlap(start_P: Tensor, end_P: Tensor) -> Tensor:
        return (torch.minimum(end_P[:, None], edges_N + TILE) - torch.maximum(start_P[:, None], edges_N)).clamp_(min=0)

    seen_PN = overlap(own_from_P, to_P) + overlap(before_from_P, before_to_P)
    return seen_PN.view(-1, TILE, len(edges_N)).sum(1)


def _listed(chosen_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles of each row are chosen, (1, 1, N), and which, the chosen ones first, (1, 1, N, N)."""
    order = chosen_NN.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return chosen_NN.sum(1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]
