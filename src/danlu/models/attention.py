"""`danlu_segments`: the attention implementation that danlu registers with transformers.

In a packed forward each layer attends inside the segments that its mask argument names. Anywhere else (generation, a
plain forward by the user) there are no segments and it computes what `sdpa` computes, so that a model may keep the
setting for good.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from danlu.models.segment_attention import Rule, attend_by_hand, attend_segments, causal_mask
from danlu.models.segments import Segments, segments_in_flight

IMPLEMENTATION = "danlu_segments"


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Segments | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' AttentionInterface asks; return ((1, T, H, D), None)."""
    rule = Rule(scaling, sliding_window, softcap, s_aux, dropout)
    if isinstance(attention_mask, Segments):
        if attention_mask.windows is not None:
            attention_mask.windows.append(sliding_window)
        return attend_segments(query, key, value, attention_mask, rule), None
    if rule.is_plain:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return out, None
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = causal_mask(query.shape[2], sliding_window, query.device)
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    return attend_by_hand(query, key, value, attention_mask, rule).transpose(1, 2).contiguous(), None


def segment_mask(**kwargs: Any) -> Segments | Tensor | None:
    """Answer transformers' request for a mask with the segments in flight, or with sdpa's mask when there are none."""
    segments = segments_in_flight()
    mask: Tensor | None = sdpa_mask(**kwargs) if segments is None else None
    return mask if segments is None else segments


def register() -> None:
    """Make `danlu_segments` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, segment_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, segment_mask)


@contextmanager
def implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Use attention implementation `name` inside the block, the former one after it."""
    former = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def accepts(model: PreTrainedModel) -> bool:
    """Return whether the model's own code looks its attention function up in transformers' registry."""
    former = model.config._attn_implementation
    if not type(model)._can_set_attn_implementation():
        return False
    model.set_attn_implementation(IMPLEMENTATION)
    taken = model.config._attn_implementation == IMPLEMENTATION
    model.set_attn_implementation(former)
    return bool(taken)


register()
