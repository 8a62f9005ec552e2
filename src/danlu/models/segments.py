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

from torch import Tensor

from danlu.models.stream_tensors import StreamTensors


@dataclass(frozen=True, eq=False)
class Segments:
    """Causal segments laid end to end.

    lengths      (S,)          tokens in each segment, plain integers
    cu_seqlens   (S+1,) int32  where segments start and end, on the device of the stream
    max_length                 the longest segment
    windows      filled with each attention call's sliding window while the layers are being counted, else None
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_length: int
    windows: list[int | None] | None = field(default=None)

    @classmethod
    def of(cls, stream: StreamTensors, *, counted: bool = False) -> "Segments":
        """Return the segments of a stream; `counted` ones note every attention call that they reach."""
        return cls(stream.lengths, stream.cu_seqlens, stream.max_length, [] if counted else None)

    @cached_property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Segments by length: (length, which segments), so that equal ones share one attention call."""
        by_length: dict[int, list[int]] = {}
        for index, length in enumerate(self.lengths):
            by_length.setdefault(length, []).append(index)
        return tuple((length, tuple(members)) for length, members in by_length.items())


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
