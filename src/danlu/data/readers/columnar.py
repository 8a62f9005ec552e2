"""Parquet and Arrow files, read one row group or batch at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.readers.file_bytes import plain_file
from danlu.data.row_file import ROW_FILES, PlacedRow, file_type

ROWS_AT_A_TIME = 1024


class ColumnarFile(ABC):
    """Rows by their index; nested columns come as lists and mappings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: tuple[int, list[Any]] = (-1, [])

    def scan(self) -> Iterator[PlacedRow]:
        return self.scan_from(0, 1)

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        for first, rows in self._groups(place):
            for index in range(max(first, place), first + len(rows)):
                yield PlacedRow(index + 1, index, rows[index - first])

    def read(self, place: int) -> Any:
        first, rows = self._kept
        if not first <= place < first + len(rows) or first < 0:
            self._kept = first, rows = self._around(place)
        return rows[place - first]

    def _groups(self, place: int) -> Iterator[tuple[int, list[Any]]]:
        total = self._count()
        while place < total:
            first, rows = self._around(place)
            yield first, rows
            place = first + len(rows)

    @abstractmethod
    def _count(self) -> int:
        """Return the number of rows of the file."""

    @abstractmethod
    def _around(self, place: int) -> tuple[int, list[Any]]:
        """Return some rows that `place` is among, and the index of the first."""

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"not a whole {file_type(self.path)} file: {error}", where=str(self.path),
                         fix="download or write the file again")


@ROW_FILES.register("parquet")
class ParquetFile(ColumnarFile):
    """A row group is in memory at a time."""

    @cached_property
    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet

        with plain_file(self.path) as plain:
            try:
                return pa.parquet.ParquetFile(plain)
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(error) from None

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for group in range(self._file.num_row_groups):
            starts.append(starts[-1] + self._file.metadata.row_group(group).num_rows)
        return starts

    def _count(self) -> int:
        return self._starts[-1]

    def _around(self, place: int) -> tuple[int, list[Any]]:
        group = max(index for index, start in enumerate(self._starts[:-1]) if start <= place)
        table = self._table(group)
        offset = (place - self._starts[group]) // ROWS_AT_A_TIME * ROWS_AT_A_TIME
        return self._starts[group] + offset, table.slice(offset, ROWS_AT_A_TIME).to_pylist()

    def _table(self, group: int) -> Any:
        number, table = self._last_group
        if number != group:
            table = self._file.read_row_group(group, use_threads=False)
            self._last_group = (group, table)
        return table

    _last_group: tuple[int, Any] = (-1, None)


@ROW_FILES.register("arrow", "feather")
class ArrowFile(ColumnarFile):
    """The file is mapped, not read; stream and file layout both."""

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa
        import pyarrow.ipc

        with plain_file(self.path) as plain:
            try:
                source = pa.memory_map(str(plain))
                return _first_that_reads(source, pa.ipc.open_stream, pa.ipc.open_file)
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(error) from None

    def _count(self) -> int:
        return int(self._table.num_rows)

    def _around(self, place: int) -> tuple[int, list[Any]]:
        first = place // ROWS_AT_A_TIME * ROWS_AT_A_TIME
        return first, self._table.slice(first, ROWS_AT_A_TIME).to_pylist()


def _first_that_reads(source: Any, *layouts: Any) -> Any:
    """Return the table of the first of the layouts (stream, file) that the bytes have."""
    import pyarrow as pa

    for layout in layouts[:-1]:
        try:
            return layout(source).read_all()
        except pa.ArrowException:
            source.seek(0)
    return layouts[-1](source).read_all()
