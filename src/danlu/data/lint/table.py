"""What lint remembers of every row, 52 bytes of hashes and places, and what repeats among them."""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from danlu.data.lint.texts import Identity
from danlu.data.row_file import PlacedRow, RowFile

MOST_ROWS = 20_000_000
Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


class Repeat(NamedTuple):
    """A row that repeats another: index of both, and how many rows of the kind there are."""

    row: int
    twin: int
    number: int


class RowTable:
    """Rows in the order read. Beyond `MOST_ROWS` rows are checked one by one but compared no more."""

    def __init__(self) -> None:
        self.files: list[RowFile] = []
        self.is_eval: list[bool] = []
        self._file, self._number = array("i"), array("q")
        self._line, self._place = array("q"), array("q")
        self._row, self._prompt, self._ask = array("Q"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._file)

    @property
    def is_full(self) -> bool:
        """True when no more rows are compared."""
        return len(self) >= MOST_ROWS

    def open(self, file: RowFile, *, is_eval: bool) -> None:
        """Say which file the rows added from now on are of."""
        if not self.files or self.files[-1] is not file:
            self.files.append(file)
            self.is_eval.append(is_eval)

    def add(self, row: PlacedRow, identity: Identity) -> None:
        """Remember a row of the file opened last."""
        self._file.append(len(self.files) - 1)
        self._number.append(row.number)
        self._line.append(row.line or 0)
        self._place.append(row.place)
        self._row.append(identity.row)
        self._prompt.append(identity.prompt)
        self._ask.append(identity.ask)

    def locate(self, index: int) -> tuple[RowFile, PlacedRow]:
        """Return a row again, read from its file."""
        file, place = self.files[self._file[index]], self._place[index]
        return file, PlacedRow(self._number[index], place, file.read(place), line=self._line[index] or None)

    def owner(self, index: int) -> int:
        """Return which of `files` a row is of."""
        return self._file[index]

    def named(self, index: int) -> str:
        """Return `file:line` of a row; of files without lines, `file row N`."""
        path, line = self.files[self._file[index]].path, self._line[index]
        return f"{path}:{line or self._number[index]}" + (f" (row {self._number[index]})" if line else "")

    @property
    def eval_rows(self) -> NDArray[np.bool_]:
        """True for rows of evaluation files."""
        return np.array(self.is_eval, np.bool_)[np.frombuffer(self._file, np.int32)] if len(self) else np.zeros(0, bool)

    def duplicates(self) -> Iterator[Repeat]:
        """Yield each row that says exactly what an earlier row of the same side says."""
        eval_rows = self.eval_rows
        for side in (False, True):
            yield from _repeats(_hashes(self._row), np.flatnonzero(eval_rows == side))

    def contradictions(self) -> Iterator[Repeat]:
        """Yield, for each prompt with several different answers, the first row that disagrees with the first."""
        rows, prompts = _hashes(self._row), _hashes(self._prompt)
        chosen = np.flatnonzero((prompts != 0) & ~self.eval_rows)
        if not len(chosen):
            return
        order = np.lexsort((rows[chosen], prompts[chosen]))
        pairs = np.stack([prompts[chosen][order], rows[chosen][order]])
        is_new = np.concatenate([[True], (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])
        distinct = np.sort(chosen[order[is_new]])
        _, where, number = np.unique(prompts[distinct], return_inverse=True, return_counts=True)
        order = np.argsort(where, kind="stable")
        starts = np.concatenate([[0], np.cumsum(number)[:-1]])
        for begin, count in zip(starts.tolist(), number.tolist(), strict=True):
            if count > 1:
                yield Repeat(int(distinct[order[begin + 1]]), int(distinct[order[begin]]), count)

    def leaks(self) -> Iterator[Repeat]:
        """Yield each training row whose question an evaluation row asks too."""
        asks, eval_rows = _hashes(self._ask), self.eval_rows
        known, first = np.unique(np.where(eval_rows, asks, 0), return_index=True)
        hit = np.flatnonzero(np.isin(asks, known[known != 0]) & ~eval_rows & (asks != 0))
        for index in hit.tolist():
            yield Repeat(index, int(first[np.searchsorted(known, asks[index])]), 1)

    def hashes(self) -> Hashes:
        """Return the hash of every row; 0 for rows without record."""
        return _hashes(self._row)


def _hashes(column: "array[int]") -> Hashes:
    return np.frombuffer(column, np.uint64) if len(column) else np.zeros(0, np.uint64)


def _repeats(hashes: Hashes, chosen: Indices) -> Iterator[Repeat]:
    chosen = chosen[hashes[chosen] != 0]
    if not len(chosen):
        return
    _, first, where, number = np.unique(hashes[chosen], return_index=True, return_inverse=True, return_counts=True)
    later = np.flatnonzero(np.arange(len(chosen)) != first[where])
    for index in later.tolist():
        yield Repeat(int(chosen[index]), int(chosen[first[where[index]]]), int(number[where[index]]))
