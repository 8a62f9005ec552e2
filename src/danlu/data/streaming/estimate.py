"""How many examples and tokens an epoch of a stream has: worked out from a sample, exactly when the sample is all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.core.records import Record
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.ledger import Ledger
from danlu.data.packing import Arranged
from danlu.data.streaming.row_index import EVERY
from danlu.data.streaming.row_stream import WINDOW_ROWS
from danlu.data.streaming.set_walk import SetWalk
from danlu.templates import Encoded

SAMPLE_ROWS = 2048
ENOUGH_TO_JUDGE = 32  # rows of which at least one is usable, or the set is of another kind
ROWS_AT_A_PLACE = 32

Arrange = Callable[[Sequence[Encoded], DataConfig], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An epoch in numbers. `lengths` and `ids` (with an origin for each id) are those of the sample."""

    rows: int
    sampled: int
    examples: int
    tokens: int
    trained: int
    lengths: NDArray[np.int64]
    ids: dict[int, str]

    @property
    def is_exact(self) -> bool:
        """Say whether the sample was the whole epoch."""
        return self.rows == self.sampled


def estimate_epoch(walks: Sequence[SetWalk], rows: Sequence[int], encode: Callable[[list[Record]], list[Encoded]],
                   arrange: Arrange, config: DataConfig) -> Estimate:
    """Encode rows from evenly spaced places of each set, as many as its share in an epoch.

    rows  rows that each set gives in an epoch
    Errors: DataError when no row of the sample, or of one set's part of it, can be used.
    """
    total = sum(rows)
    records, sampled, ledger = list[Record](), 0, Ledger()
    for walk, share in zip(walks, rows, strict=True):
        walk.rows.ledger = ledger
        wanted = share if total <= SAMPLE_ROWS else max(1, round(SAMPLE_ROWS * share / total))
        before = len(records)
        for place in _places(len(walk), wanted):
            walk.skip_to(place)
            record = walk.next()[1]
            sampled += 1
            records += [] if record is None else [record]
        if len(records) == before and wanted >= min(max(share, 1), ENOUGH_TO_JUDGE):
            # Not a bad row here and there, but a set of another kind.
            raise walk.rows.no_rows()
        walk.restart()
        walk.rows.warn_of_absent_columns()
    encoded = encode(records) if records else []
    if not encoded:
        raise walks[0].rows.no_rows()
    return _scaled(total, sampled, _arranged(encoded, arrange, config), encoded, config)


def _places(size: int, wanted: int) -> list[int]:
    """Return `wanted` positions below `size`: runs of neighbours that begin where the index knows a row."""
    if wanted >= size:
        return [place % size for place in range(wanted)]
    runs = max(1, wanted // ROWS_AT_A_PLACE)
    starts = [int(start) for start in np.linspace(0, size - wanted // runs, runs)]
    if size > runs * EVERY:
        starts = [start // EVERY * EVERY for start in starts]
    return [start + step for start in starts for step in range(wanted // runs)]


def _arranged(encoded: Sequence[Encoded], arrange: Arrange, config: DataConfig) -> Sequence[Example]:
    """Return the examples as the stream makes them: in windows, unless what is left over goes into the next."""
    examples = arrange(encoded, config)
    if isinstance(examples, Arranged) and examples.is_open:
        return examples
    starts = range(0, len(encoded), WINDOW_ROWS)
    return [one for start in starts for one in arrange(encoded[start:start + WINDOW_ROWS], config)]


def _scaled(total: int, sampled: int, examples: Sequence[Example], encoded: Sequence[Encoded],
            config: DataConfig) -> Estimate:
    lengths = np.array([len(one.input_ids) for one in examples], np.int64)
    trained = sum(int(one.trained.sum() - one.trained[np.cumsum(one.lengths) - one.lengths].sum()) for one in examples)
    scale = total / sampled
    number = float(len(examples))
    if scale > 1 and isinstance(examples, Arranged) and examples.is_open:
        number += lengths[-1] / config.cutoff_len - 1
    ids: dict[int, str] = {}
    for one in encoded:
        for token in np.unique(one.input_ids).tolist():
            ids.setdefault(token, str(one.origin))
    return Estimate(total, sampled, max(1, round(number * scale)), round(int(lengths.sum()) * scale),
                    round(trained * scale), lengths, ids)
