"""CSV and TSV files with a header line; a cell may hold line breaks inside quotes."""

import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from danlu.core.errors import DataError
from danlu.data.readers.file_bytes import bytes_from, open_bytes
from danlu.data.readers.lines import BOM
from danlu.data.row_file import LONGEST_ROW, ROW_FILES, PlacedRow, decode, file_type, too_long

Opener = Callable[[Path, int], AbstractContextManager[BinaryIO]]


@ROW_FILES.register("csv", "tsv")
class CsvFile:
    """Rows are mappings of strings. The number of a row is the line it starts on, its place a byte offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: list[str] = []

    def scan(self) -> Iterator[PlacedRow]:
        lines = _CountedLines(self.path, 0, opened=_walk_from)
        cells = self._cells(lines)
        self._header = self._names(cells)
        return self._rows(lines, cells)

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        self._header = self._header or self._names(self._cells(_CountedLines(self.path, 0)))
        lines = _CountedLines(self.path, place, number - 1, _walk_from)
        return self._rows(lines, self._cells(lines))

    def _rows(self, lines: "_CountedLines", cells: Iterator[list[str]]) -> Iterator[PlacedRow]:
        while True:
            number, place = lines.number + 1, lines.offset
            try:
                row = next(cells)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"broken CSV: {error}", where=f"{self.path}:{number}",
                    fix="quote cells that hold commas, quotes or line breaks, and close every quote") from None
            if row:
                yield self._placed(number, place, row)

    def read(self, place: int) -> Any:
        if not self._header:
            self._header = self._names(self._cells(_CountedLines(self.path, 0)))
        return dict(zip(self._header, next(self._cells(_CountedLines(self.path, place))), strict=True))

    def _cells(self, lines: "_CountedLines") -> Iterator[list[str]]:
        csv.field_size_limit(LONGEST_ROW)
        return csv.reader(lines, delimiter="\t" if file_type(self.path) == "tsv" else ",", strict=True)

    def _names(self, cells: Iterator[list[str]]) -> list[str]:
        header = [name.strip() for name in next(cells, [])]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"the header names {', '.join(twice)} twice", where=f"{self.path}:1",
                            fix="give every column a name of its own")
        return header

    def _placed(self, number: int, place: int, row: list[str]) -> PlacedRow:
        if len(row) == len(self._header):
            return PlacedRow(number, place, dict(zip(self._header, row, strict=True)))
        error = DataError(f"{len(row)} cells where the header has {len(self._header)}",
                          where=f"{self.path}:{number}", fix="quote cells that hold commas, or set on_bad_row: skip")
        return PlacedRow(number, place, None, error)


@contextmanager
def _walk_from(path: Path, offset: int) -> Iterator[BinaryIO]:
    """Open the bytes at `offset` for a walk of its own, which single reads do not disturb."""
    with open_bytes(path) as file:
        file.seek(offset)
        yield file


class _CountedLines:
    """The lines of a file as text, with the number of lines and bytes handed out so far."""

    def __init__(self, path: Path, offset: int, number: int = 0, opened: Opener = bytes_from) -> None:
        self.path, self.offset, self.number, self._opened = path, offset, number, opened
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _read(self) -> Iterator[str]:
        with self._opened(self.path, self.offset) as file:
            while raw := file.readline(LONGEST_ROW):
                if len(raw) == LONGEST_ROW and not raw.endswith(b"\n"):
                    raise too_long(self.path, self.number + 1, "line")
                start, self.offset, self.number = self.offset, self.offset + len(raw), self.number + 1
                skipped = len(BOM) if start == 0 and raw.startswith(BOM) else 0
                yield decode(raw[skipped:], self.path, self.number, start + skipped)
