"""`danlu_slots`: the attention of a stock model whose rows keep their keys and values in slots.

A model is called on a flat stream of batch size 1, as in a packed forward: whole prompts end to end in one pass, one
token of every row in the next ones. The pass in flight does the attention: it reaches each layer as its mask
argument, or is called by the lean body (`models/lean_body.py`).
Knows nothing of sampling.

Shape legend: T tokens of the stream, B rows, H query heads, K key/value heads, G = H / K, D head width, W positions
looked at, S slots, P positions a slot can hold.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from danlu.models.attention_rule import kernel_dtype
from danlu.models.segment_attention import Rule, attend_by_hand, attend_segments
from danlu.models.segments import Segments

IMPLEMENTATION = "danlu_slots"
ROWS_AT_ONCE = 8  # rows that share one attention call on a CPU: the longest of them decides how far all look back


class Pass(Protocol):
    """One forward of the model. Layers call `attend` in their order."""

    def attend(self, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, rule: Rule) -> Tensor:
        """Return the attention of one layer, (1, T, H, D)."""
        ...


def stored_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype of keys and values in slots: on a processor, whose 16-bit attention is slow, never a 16-bit one.
    """
    dtype = kernel_dtype(query)
    return torch.float32 if query.device.type == "cpu" and dtype.itemsize < 4 else dtype


@dataclass
class LayerStore:
    """Keys and values of one layer in all slots, (S, P, K, D) each; positions not yet written are zero."""

    keys: Tensor
    values: Tensor

    def write(self, places: Tensor, keys_TKD: Tensor, values_TKD: Tensor) -> None:
        """Put keys and values at `places`, (T,) of slot * P + position."""
        for buffer, new in ((self.keys, keys_TKD), (self.values, values_TKD)):
            buffer.flatten(0, 1).index_copy_(0, places, new.to(buffer.dtype))


@dataclass
class PromptPass:
    """Whole prompts end to end; what every layer computed of them is kept.

    keys, values  (T, K, D) of each layer so far
    windows       the sliding window of each layer so far, None where it sees everything
    """

    segments: Segments
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)

    def attend(self, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, rule: Rule) -> Tensor:
        """Attend inside each prompt and keep the layer's keys and values."""
        dtype = stored_dtype(query_1HTD)
        for kept, new in ((self.keys, key_1KTD), (self.values, value_1KTD)):
            kept.append(new[0].transpose(0, 1).to(dtype).contiguous())
        self.windows.append(rule.window)
        return attend_segments(query_1HTD, key_1KTD, value_1KTD, self.segments, rule)


@dataclass(frozen=True)
class RowGroup:
    """Rows start..stop of the batch, the positions they look at, and each row's last position."""

    start: int
    stop: int
    width: int
    last_B: Tensor
    is_ragged: bool

    def mask(self, window: int | None) -> Tensor | None:
        """Return (B, 1, 1, W) bool, True where the row may look; None when all rows see all positions."""
        if not self.is_ragged and (window is None or window >= self.width):
            return None
        position_W, last_B1 = torch.arange(self.width, device=self.last_B.device), self.last_B[:, None]
        visible_BW = position_W <= last_B1
        if window is not None:
            visible_BW &= position_W > last_B1 - window
        return visible_BW[:, None, None]


class TokenPass:
    """One new token of every row; row r lives in slot r. Writes its key and value, then looks at all before it."""

    def __init__(self, layers: Sequence[LayerStore], places_B: Tensor, groups: Sequence[RowGroup]) -> None:
        self._layers, self._next_layer = layers, 0
        self._places, self._groups = places_B, groups
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = {}

    @classmethod
    def by_neighbourhood(
        cls, layers: Sequence[LayerStore], positions: Sequence[int], device: torch.device
    ) -> "TokenPass":
        """Return a pass that looks back no farther than the longest row of a group."""
        capacity = layers[0].keys.shape[1]
        places = torch.tensor([row * capacity + at for row, at in enumerate(positions)], device=device)
        return cls(layers, places, _row_groups(positions, device))

    @classmethod
    def at_full_width(cls, layers: Sequence[LayerStore], positions_B: Tensor) -> "TokenPass":
        """Return a pass over all positions that slots hold: its shapes do not depend on what `positions_B` holds."""
        num_rows, capacity = len(positions_B), layers[0].keys.shape[1]
        places_B = torch.arange(num_rows, device=positions_B.device) * capacity + positions_B
        return cls(layers, places_B, [RowGroup(0, num_rows, capacity, positions_B, True)])

    def attend(self, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, rule: Rule) -> Tensor:
        """Attend of each row's token to its slot."""
        layer = self._layers[self._next_layer]
        self._next_layer += 1
        layer.write(self._places, key_1KTD[0].transpose(0, 1), value_1KTD[0].transpose(0, 1))
        query_BHD = query_1HTD[0].transpose(0, 1).to(layer.keys.dtype)
        pieces = [self._attend_group(query_BHD, layer, group, rule) for group in self._groups]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces))[None].to(kernel_dtype(query_1HTD))

    def _attend_group(self, query_BHD: Tensor, layer: LayerStore, group: RowGroup, rule: Rule) -> Tensor:
        """Return (B, H, D) of the group's rows. The G heads that share a key are G queries of one attention call."""
        rows = slice(group.start, group.stop)
        key_BKWD, value_BKWD = (x[rows, : group.width].transpose(1, 2) for x in (layer.keys, layer.values))
        query_BHD = query_BHD[rows]
        if not rule.is_plain:
            out = attend_by_hand(query_BHD[:, :, None], key_BKWD, value_BKWD, group.mask(rule.window), rule)
            return out.flatten(1, 2)
        query_BKGD = query_BHD.unflatten(1, (key_BKWD.shape[1], -1))
        out = F.scaled_dot_product_attention(
            query_BKGD, key_BKWD, value_BKWD, attn_mask=self._added(group, rule, query_BHD), scale=rule.scale)
        return out.flatten(1, 2)

    def _added(self, group: RowGroup, rule: Rule, query: Tensor) -> Tensor | None:
        """Return the mask as numbers added to scores, made once for all layers of a pass."""
        key = (group.start, rule.window, query.dtype)
        if key not in self._masks:
            visible = group.mask(rule.window)
            self._masks[key] = None if visible is None else torch.zeros(
                visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, -torch.inf)
        return self._masks[key]


def _row_groups(positions: Sequence[int], device: torch.device) -> list[RowGroup]:
    """Return the rows in groups of neighbours; one group on accelerators, where a call costs more than its padding."""
    size = ROWS_AT_ONCE if device.type == "cpu" and len(set(positions)) > 1 else len(positions)
    groups = []
    for start in range(0, len(positions), size):
        mine = positions[start : start + size]
        groups.append(RowGroup(
            start, start + len(mine), max(mine) + 1, torch.tensor(mine, device=device), min(mine) < max(mine)))
    return groups


_IN_FLIGHT: ContextVar[Pass | None] = ContextVar("danlu_slot_pass", default=None)


@contextmanager
def in_flight(current: Pass) -> Iterator[None]:
    """Let every attention layer called inside the block attend through `current`."""
    token = _IN_FLIGHT.set(current)
    try:
        yield
    finally:
        _IN_FLIGHT.reset(token)


def slot_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Pass, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' AttentionInterface asks; return ((1, T, H, D), None)."""
    return attention_mask.attend(query, key, value, Rule(scaling, sliding_window, softcap, s_aux)), None


def slot_mask(**kwargs: Any) -> Pass:
    """Answer transformers' request for a mask with the pass in flight."""
    current = _IN_FLIGHT.get()
    if current is None:
        raise RuntimeError(f"{IMPLEMENTATION} serves generation alone and no pass is in flight")
    return current


AttentionInterface.register(IMPLEMENTATION, slot_attention)
AttentionMaskInterface.register(IMPLEMENTATION, slot_mask)
