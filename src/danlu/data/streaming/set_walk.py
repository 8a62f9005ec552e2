"""The rows of one data set, one after the other, from any place on. Nothing before that place is read."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import DataError
from danlu.core.records import Record
from danlu.data.loader import SourceRows
from danlu.data.row_file import PlacedRow
from danlu.data.streaming.row_index import EVERY, RowIndex

Ref = tuple[int, int, int, int]  # data set, file of it, place in the file, number of the row


class SetWalk:
    """Walks through the wanted rows (sorted, counted from 0 over all files) of data set number `owner`, in a circle."""

    def __init__(self, owner: int, rows: SourceRows, indexes: Sequence[RowIndex],
                 wanted: Sequence[int] | NDArray[np.int64]) -> None:
        self.owner, self.rows, self.wanted = owner, rows, wanted
        self._indexes = indexes
        self._starts = [0, *accumulate(index.count for index in indexes)]
        self.restart()

    def __len__(self) -> int:
        return len(self.wanted)

    def restart(self) -> None:
        """Go back to the first wanted row."""
        self.taken, self._at, self._file = 0, -1, 0
        self._scan: Iterator[PlacedRow] | None = None
        self._last: tuple[Ref, Record | None] | None = None

    def skip_to(self, taken: int) -> None:
        """Go on behind the first `taken` wanted rows; none of them is read."""
        self.taken = taken

    def next(self) -> tuple[Ref, Record | None]:
        """Return the next wanted row; its record is None when it is left out (see the ledger)."""
        row = int(self.wanted[self.taken % len(self.wanted)])
        self.taken += 1
        if self._last is None or row != self._at:
            placed = self._read(row)
            file = self.rows.files[self._file]
            self.rows.ledger.count(str(file.path), "read")
            self._last = (self.owner, self._file, placed.place, placed.number), self.rows.check(file, placed)
        return self._last

    def state(self) -> dict[str, Any]:
        """Return where the walk stands: rows taken, and the last of them with its place."""
        return {"taken": self.taken, "row": self._at, "last": None if self._last is None else self._last[0]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken; the last row is read once more."""
        self.restart()
        self.taken = state["taken"]
        if state["last"] is not None:
            _, self._file, place, number = state["last"]
            self._scan = self.rows.files[self._file].scan_from(place, number)
            self._at = state["row"] - 1

    def _read(self, row: int) -> PlacedRow:
        file = bisect_right(self._starts, row) - 1
        if self._scan is None or file != self._file or not 0 < row - self._at <= EVERY:
            known, place, number = self._indexes[file].before(row - self._starts[file])
            self._file, self._at = file, self._starts[file] + known - 1
            self._scan = self.rows.files[file].scan_from(place, number)
        placed = None
        while self._at < row:
            placed = next(self._scan, None)
            self._at += 1
        if placed is None:
            path = self.rows.files[file].path
            raise DataError("the file has fewer rows than when they were counted", where=str(path),
                            fix="leave the file alone while a run reads it, and run the command again")
        return placed
