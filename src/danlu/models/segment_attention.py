"""Causal attention inside segments: matrix products, a loop of fused calls, varlen and flex on CUDA, a dense oracle.

A branch of a tree attends to [prefix || branch] with the mask's diagonal at the bottom right. Knows nothing of
transformers. Shape legend: H query heads, K key/value heads, T tokens, D head width, N equal blocks, L tokens of a
block, M >= L tokens that it sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.models import flex_attention, product_attention
from danlu.models.attention_rule import Rule as Rule
from danlu.models.attention_rule import kernel_dtype
from danlu.models.segments import Segments

MAX_VARLEN_HEAD = 256


# Its calls follow the lengths of a batch: compiled, each batch would be compiled anew.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_segments(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D): the fastest exact way on this device."""
    if query_1HTD.device.type == "cuda" and rule.is_plain and _varlen_serves(query_1HTD, value_1KTD, rule):
        return attend_varlen(query_1HTD, key_1KTD, value_1KTD, segments, rule)
    if not rule.is_plain and flex_attention.serves(query_1HTD, value_1KTD, rule):
        return flex_attention.attend_flex(query_1HTD, key_1KTD, value_1KTD, segments, rule)
    is_bare = rule.is_plain and rule.dropout == 0.0
    if is_bare and product_attention.serves(query_1HTD.device, segments, rule.window):
        scale = query_1HTD.shape[-1] ** -0.5 if rule.scale is None else rule.scale
        attended = product_attention.attend_by_products(query_1HTD, key_1KTD, value_1KTD, segments, scale)
        return attended.to(kernel_dtype(query_1HTD))
    return attend_by_group(query_1HTD, key_1KTD, value_1KTD, segments, rule)


def attend_by_group(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) by one call for each distinct shape of block."""
    lengths = list(segments.lengths)
    if len(segments.groups) == 1 and not any(segments.prefixes):
        return _attend_equal(query_1HTD, key_1KTD, value_1KTD, lengths[0], rule)
    # split, not slices: its backward concatenates once, where each slice's would fill a gradient of the whole stream
    queries, keys, values = (x.split(lengths, dim=2) for x in (query_1HTD, key_1KTD, value_1KTD))
    pieces: list[Tensor] = [query_1HTD] * len(lengths)
    for before, members in segments.groups:
        query, key, value = (_together([x[at] for at in members]) for x in (queries, keys, values))
        reach = before if rule.window is None else min(before, rule.window - 1)
        if reach:
            roots = [segments.parents[at] for at in members]
            key, value = (torch.cat([_together([x[at] for at in roots])[:, :, -reach:], own], dim=2)
                          for x, own in ((keys, key), (values, value)))
        together = attend(query, key, value, rule).transpose(1, 2)
        for at, piece in zip(members, together.split(1), strict=True):
            pieces[at] = piece
    return torch.cat(pieces, dim=1)


def _together(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _attend_equal(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, length: int, rule: Rule) -> Tensor:
    """Attend inside segments that all have one length: a batch, without a copy of the stream."""
    query, key, value = (x.transpose(1, 2).reshape(-1, length, x.shape[1], x.shape[3]).transpose(1, 2)
                         for x in (query_1HTD, key_1KTD, value_1KTD))
    out_NLHD = attend(query, key, value, rule).transpose(1, 2)
    return out_NLHD.reshape(1, -1, *out_NLHD.shape[2:])


def attend(query_NHLD: Tensor, key_NKMD: Tensor, value_NKMD: Tensor, rule: Rule) -> Tensor:
    """Return causal attention of a batch of equal blocks, (N, H, L, D); the last L of M keys are the block's own."""
    length, before = query_NHLD.shape[2], key_NKMD.shape[2] - query_NHLD.shape[2]
    is_cut = rule.window is not None and rule.window < before + length
    needs_mask = is_cut or before > 0 or not rule.is_plain
    mask = causal_mask(length, rule.window, query_NHLD.device, before=before) if needs_mask else None
    if not rule.is_plain:
        return attend_by_hand(query_NHLD, key_NKMD, value_NKMD, mask, rule)
    return F.scaled_dot_product_attention(
        query_NHLD, key_NKMD, value_NKMD, attn_mask=mask, is_causal=mask is None, scale=rule.scale,
        dropout_p=rule.dropout, enable_gqa=query_NHLD.shape[1] != key_NKMD.shape[1])


def causal_mask(length: int, window: int | None, device: torch.device, *, before: int = 0) -> Tensor:
    """Return (L, before + L) bool, True where the row may see the column; the row's own column is `before` further."""
    mask = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    return mask if window is None else mask.triu(before + 1 - window)


def attend_by_hand(
    query_NHLD: Tensor, key_NKMD: Tensor, value_NKMD: Tensor, mask: Tensor | None, rule: Rule
) -> Tensor:
    """Return attention with soft-capping and sinks, (N, H, L, D); `mask` is bool and broadcasts to (N, H, L, M).

    a_ts = exp(z_ts) / (exp(sink_h) + sum_s' exp(z_ts')),   z = c tanh(q k^T scale / c)
    """
    repeats = query_NHLD.shape[1] // key_NKMD.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key_NKMD, value_NKMD))
    scale = query_NHLD.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = (query_NHLD @ key.transpose(-1, -2)).mul(scale)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = weights[..., : key.shape[2]]
    return F.dropout(weights, rule.dropout, training=rule.dropout > 0.0) @ value


def attend_dense(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) over the whole stream with one mask of T x T: the oracle, quadratic in T."""
    device, lengths = query_1HTD.device, torch.tensor(segments.lengths)
    block_T = torch.arange(len(lengths)).repeat_interleave(lengths)
    parent_T = torch.tensor(segments.parents or (-1,) * len(lengths))[block_T]
    inside_T = torch.arange(len(block_T)) - (lengths.cumsum(0) - lengths)[block_T]
    position_T = inside_T + torch.tensor(segments.prefixes)[block_T]
    is_seen_TT = (block_T[:, None] == block_T) | (parent_T[:, None] == block_T)
    distance_TT = position_T[:, None] - position_T
    mask = is_seen_TT & (distance_TT >= 0)
    mask = (mask if rule.window is None else mask & (distance_TT < rule.window)).to(device)
    return attend_by_hand(query_1HTD, key_1KTD, value_1KTD, mask, rule).transpose(1, 2)


def _varlen_serves(query: Tensor, value: Tensor, rule: Rule) -> bool:
    half = kernel_dtype(query) in (torch.bfloat16, torch.float16)
    return half and rule.dropout == 0.0 and query.shape[-1] == value.shape[-1] <= MAX_VARLEN_HEAD


def attend_varlen(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) from torch's variable-length flash kernel: CUDA, 16-bit, no dropout.

    In a tree the keys of each block are laid out anew, prefix and branch; the kernel's causal diagonal ends at the
    bottom right where there are more keys than queries (Dao 2023, flash-attention 2.1).
    """
    from torch.nn.attention.varlen import varlen_attn

    dtype = kernel_dtype(query_1HTD)
    query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    bounds, longest = segments.cu_seqlens, segments.max_length
    if any(segments.prefixes):
        seen, bounds, longest = segments.contexts
        key, value = key.index_select(0, seen), value.index_select(0, seen)
    left = -1 if rule.window is None else rule.window - 1
    out = varlen_attn(
        query, key, value, segments.cu_seqlens, bounds, segments.max_length, longest,
        scale=rule.scale, window_size=(left, 0), enable_gqa=query.shape[1] != key.shape[1])
    return out[None] if isinstance(out, Tensor) else out[0][None]
