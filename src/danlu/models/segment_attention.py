"""Causal attention inside segments, three ways: a loop of fused calls, a varlen kernel on CUDA, a dense oracle.

Knows nothing of transformers. Shape legend: H query heads, K key/value heads, T tokens, D head width, N equal segments,
L tokens of a segment.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.models.segments import Segments

MAX_VARLEN_HEAD = 256


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores become weights.

    scale    factor of q k^T; None is 1/sqrt(D)
    window   a token sees itself and window-1 tokens before it; None sees all of them
    softcap  scores become c tanh(score / c) (Gemma 2, arXiv 2408.00118, section 2)
    sinks    (H,) one learned score a head that takes weight and gives nothing (gpt-oss)
    dropout  share of attention weights dropped
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def is_plain(self) -> bool:
        """True when a fused kernel computes this rule: no soft-capping, no sinks."""
        return self.softcap is None and self.sinks is None


def attend_segments(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D): the fastest exact way on this device."""
    if query_1HTD.device.type == "cuda" and rule.is_plain and _varlen_serves(query_1HTD, value_1KTD, rule):
        return attend_varlen(query_1HTD, key_1KTD, value_1KTD, segments, rule)
    return attend_by_group(query_1HTD, key_1KTD, value_1KTD, segments, rule)


def attend_by_group(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) by one call for each distinct segment length."""
    lengths = list(segments.lengths)
    if len(segments.groups) == 1:
        return _attend_equal(query_1HTD, key_1KTD, value_1KTD, lengths[0], rule)
    # split, not slices: its backward concatenates once, where each slice's would fill a gradient of the whole stream
    queries, keys, values = (x.split(lengths, dim=2) for x in (query_1HTD, key_1KTD, value_1KTD))
    pieces: list[Tensor] = [query_1HTD] * len(lengths)
    for _, members in segments.groups:
        if len(members) == 1:
            at = members[0]
            pieces[at] = attend(queries[at], keys[at], values[at], rule).transpose(1, 2)
            continue
        query, key, value = (torch.cat([x[at] for at in members]) for x in (queries, keys, values))
        together = attend(query, key, value, rule).transpose(1, 2)
        for at, piece in zip(members, together.split(1), strict=True):
            pieces[at] = piece
    return torch.cat(pieces, dim=1)


def _attend_equal(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, length: int, rule: Rule) -> Tensor:
    """Attend inside segments that all have one length: a batch, without a copy of the stream."""
    query, key, value = (x.transpose(1, 2).reshape(-1, length, x.shape[1], x.shape[3]).transpose(1, 2)
                         for x in (query_1HTD, key_1KTD, value_1KTD))
    out_NLHD = attend(query, key, value, rule).transpose(1, 2)
    return out_NLHD.reshape(1, -1, *out_NLHD.shape[2:])


def attend(query_NHLD: Tensor, key_NKLD: Tensor, value_NKLD: Tensor, rule: Rule) -> Tensor:
    """Return causal attention of a batch of equal segments, (N, H, L, D)."""
    length = query_NHLD.shape[2]
    is_cut = rule.window is not None and rule.window < length
    mask = causal_mask(length, rule.window, query_NHLD.device) if is_cut or not rule.is_plain else None
    if not rule.is_plain:
        return attend_by_hand(query_NHLD, key_NKLD, value_NKLD, mask, rule)
    return F.scaled_dot_product_attention(
        query_NHLD, key_NKLD, value_NKLD, attn_mask=mask, is_causal=mask is None, scale=rule.scale,
        dropout_p=rule.dropout, enable_gqa=query_NHLD.shape[1] != key_NKLD.shape[1])


def causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return (L, L) bool, True where the row may see the column."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def attend_by_hand(
    query_NHLD: Tensor, key_NKLD: Tensor, value_NKLD: Tensor, mask: Tensor | None, rule: Rule
) -> Tensor:
    """Return attention with soft-capping and sinks, (N, H, L, D); `mask` is bool and broadcasts to (N, H, L, L).

    a_ts = exp(z_ts) / (exp(sink_h) + sum_s' exp(z_ts')),   z = c tanh(q k^T scale / c)
    """
    repeats = query_NHLD.shape[1] // key_NKLD.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key_NKLD, value_NKLD))
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
    """Return (1, T, H, D) over the whole stream with a block-diagonal mask: the oracle, quadratic in T."""
    lengths = torch.tensor(segments.lengths, device=query_1HTD.device)
    segment_T = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    mask = (segment_T[:, None] == segment_T) & causal_mask(len(segment_T), rule.window, lengths.device)
    return attend_by_hand(query_1HTD, key_1KTD, value_1KTD, mask, rule).transpose(1, 2)


def _varlen_serves(query: Tensor, value: Tensor, rule: Rule) -> bool:
    half = _kernel_dtype(query) in (torch.bfloat16, torch.float16)
    return half and rule.dropout == 0.0 and query.shape[-1] == value.shape[-1] <= MAX_VARLEN_HEAD


def _kernel_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype attention runs in: under autocast rotary embeddings may have left the query in float32."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def attend_varlen(query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, segments: Segments, rule: Rule) -> Tensor:
    """Return (1, T, H, D) from torch's variable-length flash kernel: CUDA, 16-bit, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    dtype = _kernel_dtype(query_1HTD)
    query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    left = -1 if rule.window is None else rule.window - 1
    out = varlen_attn(
        query, key, value, segments.cu_seqlens, segments.cu_seqlens, segments.max_length, segments.max_length,
        scale=rule.scale, window_size=(left, 0), enable_gqa=query.shape[1] != key.shape[1])
    return out[None] if isinstance(out, Tensor) else out[0][None]
