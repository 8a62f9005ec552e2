"""Which tokens of a flat stream may see each other, and how that knowledge reaches the attention layers.

Attention layers of a stock model are handed one thing by the model's own code that differs from batch to batch: the
attention mask. danlu registers a mask function that answers with the `Segments` of the stream now in flight instead
of a tensor. The model carries them to every layer as its mask argument, so gradient checkpointing, which replays a
layer with the arguments it was given, sees the segments of the right stream whatever has been forwarded since.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from danlu.models.stream_tensors import StreamTensors


@dataclass(frozen=True, eq=False)
class Segments:
    """Causal segments laid end to end; with `parents` a tree: a branch sees itself and the whole block it continues.

    lengths      (N,)          tokens in each block, plain integers
    cu_seqlens   (N+1,) int32  where blocks start and end, on the device of the stream
    max_length                 the longest block
    windows      filled with each attention call's sliding window while the layers are being counted, else None
    parents      (N,)          the block that a branch continues, -1 for a root; empty when all are roots
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_length: int
    windows: list[int | None] | None = field(default=None)
    parents: tuple[int, ...] = ()

    @cached_property
    def prefixes(self) -> tuple[int, ...]:
        """Tokens that stand before each block's first one, (N,)."""
        return tuple(self.lengths[parent] if parent >= 0 else 0 for parent in self.parents) or (0,) * len(self.lengths)

    @cached_property
    def most_seen(self) -> int:
        """Tokens that the last token of some block sees, at most over all blocks; 0 without blocks."""
        return max((own + before for own, before in zip(self.lengths, self.prefixes, strict=True)), default=0)

    @cached_property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Blocks of one shape: (tokens before it, which blocks), so that equal ones share one attention call."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(zip(self.prefixes, self.lengths, strict=True)):
            by_shape.setdefault(shape, []).append(index)
        return tuple((before, tuple(members)) for (before, _), members in by_shape.items())

    @cached_property
    def contexts(self) -> tuple[Tensor, Tensor, int]:
        """What each block sees, one behind the other: its tokens (K,), bounds (N+1,) int32, and the longest context."""
        device, starts = self.cu_seqlens.device, [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        pieces = [torch.arange(starts[at], starts[at + 1]) for at in range(len(self.lengths))]
        seen = [torch.cat([pieces[parent], piece]) if parent >= 0 else piece
                for parent, piece in zip(self.parents or (-1,) * len(pieces), pieces, strict=True)]
        bounds = torch.tensor([0, *map(len, seen)]).cumsum(0).to(torch.int32)
        return torch.cat(seen).to(device), bounds.to(device), max(map(len, seen))


@dataclass(frozen=True, eq=False)
class Layout:
    """What a body is given: the plain stream, or its tree with shared beginnings left out.

    input_ids     (C,)  tokens that are computed
    position_ids  (C,)  their positions in their segments
    places        (T,)  where each token of the plain stream is found; None: at its own index
    segments            what may see what
    """

    input_ids: Tensor
    position_ids: Tensor
    places: Tensor | None
    segments: Segments

    @classmethod
    def of(cls, stream: StreamTensors, *, shared: bool, counted: bool = False) -> "Layout":
        """Lay a stream out; `counted` segments note every attention call that they reach."""
        windows: list[int | None] | None = [] if counted else None
        tree = stream.tree
        if tree is None or not shared:
            segments = Segments(stream.lengths, stream.cu_seqlens, stream.max_length, windows)
            return cls(stream.input_ids, stream.position_ids, None, segments)
        bounds = torch.tensor([0, *tree.lengths]).cumsum(0).to(stream.cu_seqlens)
        segments = Segments(tree.lengths, bounds, max(tree.lengths), windows, tree.parents)
        return cls(stream.input_ids[tree.kept], stream.position_ids[tree.kept], tree.places, segments)

    def rounded(self, multiple: int) -> "Layout":
        """Return the layout with a block of zeros behind it, which nothing reads, so that C is a multiple."""
        extra = -len(self.input_ids) % multiple
        if not extra:
            return self
        old, ids, positions = self.segments, self.input_ids, self.position_ids
        bounds = torch.cat([old.cu_seqlens, old.cu_seqlens[-1:] + extra])
        parents = (*old.parents, -1) if old.parents else ()
        segments = Segments((*old.lengths, extra), bounds, max(old.max_length, extra), old.windows, parents)
        return Layout(torch.cat([ids, ids.new_zeros(extra)]),
                      torch.cat([positions, torch.arange(extra, device=positions.device)]), self.places, segments)

    def gather(self, values_CX: Tensor, rows_R: Tensor) -> Tensor:
        """Return the entries of positions of the plain stream, (R, X); some may be asked for several times."""
        # index_select adds up the gradients of a repeated row in order, so that a run repeats bit for bit
        return values_CX.index_select(0, rows_R if self.places is None else self.places[rows_R])


_IN_FLIGHT: ContextVar[Segments | None] = ContextVar("danlu_segments", default=None)


def segments_in_flight() -> Segments | None:
    """Return the segments of the stream being forwarded in this thread; None outside a packed forward."""
    return _IN_FLIGHT.get()


@contextmanager
def in_flight(segments: Segments) -> Iterator[Segments]:
    """Make `segments` the answer of the mask function inside the block."""
    token = _IN_FLIGHT.set(segments)
    try:
        yield segments
    finally:
        _IN_FLIGHT.reset(token)
