"""From encoded records to training examples: blocks of a stream of documents, or rows filled with whole examples."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.prepare import EncodedOnDisk
from danlu.templates import Encoded

Slice = tuple[int, int, int]  # which encoded record, first token, behind the last token


class Arranged(Sequence[Example]):
    """Examples made of slices of encoded records, built when asked for.

    `is_one_stream` joins the slices of an example into one segment; otherwise each is a segment of its own.
    `is_open` says that the last example has room and would take the start of a further record.
    """

    def __init__(self, encoded: Sequence[Encoded], plan: Sequence[Sequence[Slice]], *, is_one_stream: bool,
                 is_open: bool = False) -> None:
        self._encoded, self._plan, self._is_one_stream, self.is_open = encoded, plan, is_one_stream, is_open

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        pieces = [(self._encoded[which], start, end) for which, start, end in self._plan[index]]
        has_weights = any(one.weights is not None for one, _, _ in pieces)
        lengths = tuple(end - start for _, start, end in pieces)
        return Example(
            np.concatenate([one.input_ids[start:end] for one, start, end in pieces]).astype(np.int64),
            np.concatenate([one.trained[start:end] for one, start, end in pieces]),
            np.concatenate([_weights(one)[start:end] for one, start, end in pieces]) if has_weights else None,
            (sum(lengths),) if self._is_one_stream else lengths,
            index, pieces[0][0].facts)

    def slices(self, index: int) -> tuple[Slice, ...]:
        """Return which tokens of which encoded records an example is made of."""
        return tuple(self._plan[index])

    def members(self, index: int) -> tuple[int, ...]:
        """Return which encoded records an example is made of."""
        return tuple(dict.fromkeys(which for which, _, _ in self._plan[index]))


def lengths_of(encoded: Sequence[Encoded]) -> list[int]:
    """Return the number of tokens of every record, without reading records that lie on disk."""
    return encoded.lengths() if isinstance(encoded, EncodedOnDisk) else [len(one.input_ids) for one in encoded]


def _weights(one: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ones(len(one.input_ids), np.float32) if one.weights is None else one.weights


def pack_or_keep(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
    """Fill rows of `cutoff_len` with whole examples when packing is on, else keep one example a row.

    Examples in a row are segments: they never see each other.
    """
    lengths = lengths_of(encoded)
    is_packed = bool(config.packing) or config.neat_packing
    rows = best_fit(lengths, config.cutoff_len) if is_packed else [[index] for index in range(len(lengths))]
    return Arranged(encoded, [[(which, 0, lengths[which]) for which in row] for row in rows], is_one_stream=False)


def blocks_or_keep(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
    """Join documents and cut the stream into blocks of `cutoff_len`, the remainder kept as a shorter last block.

    A block is one segment, as in GPT-3's training (Brown et al. 2020, section 2.2); with `neat_packing` each document
    in it is a segment of its own. `packing: false` keeps documents apart, long ones in several blocks.
    """
    lengths = lengths_of(encoded)
    if config.packing is False:
        plan = [[piece] for which, length in enumerate(lengths) for piece in _cut(which, length, config.cutoff_len)]
        return Arranged(encoded, plan, is_one_stream=not config.neat_packing)
    plan = list(_blocks(lengths, config.cutoff_len))
    return Arranged(encoded, plan, is_one_stream=not config.neat_packing,
                    is_open=sum(lengths) % config.cutoff_len > 0)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices, each row's lengths summing to at most `capacity`: best-fit decreasing (Johnson, 1973).

    A length above the capacity gets a row of its own. Rows come in the order of their first example.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            rows.append([index])
            room, row = capacity - lengths[index], len(rows) - 1
        else:
            room, row = free.pop(place)
            rows[row].append(index)
            room -= lengths[index]
        if room > 0:
            insort(free, (room, row))
    return sorted(sorted(row) for row in rows)


def _cut(which: int, length: int, size: int) -> Iterator[Slice]:
    return ((which, start, min(start + size, length)) for start in range(0, length, size))


def _blocks(lengths: Sequence[int], size: int) -> Iterator[list[Slice]]:
    block: list[Slice] = []
    room = size
    for which, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(length, start + room)
            block.append((which, start, end))
            room -= end - start
            start = end
            if not room:
                yield block
                block, room = [], size
    if block:
        yield block
