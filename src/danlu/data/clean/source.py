"""Rows of data sets in chunks, each row with its origin; and a function over the chunks in several processes.

Chunks come back in order, and only a few are under way at a time, so memory does not grow with the data.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from danlu.core.errors import CapabilityError, DataError
from danlu.data.clean.rows import TextField, joined, text_fields
from danlu.data.config import DataConfig
from danlu.data.registry import find_sources
from danlu.data.row_file import PlacedRow, open_rows
from danlu.data.row_format import RowProblem

ROWS = 1024
CHARACTERS_HINT = 1 << 20
FEW_CHUNKS = 4
AHEAD = 3
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file, one after the other. `index` is the number of the first over all files, from 0."""

    path: str
    index: int
    rows: tuple[PlacedRow, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send plain tuples to other processes, which takes a third of the time of sending rows."""
        fields = [(row.number, row.place, row.value, row.error, row.line) for row in self.rows]
        return _received, (self.path, self.index, fields)


def _received(path: str, index: int, fields: list[tuple[Any, ...]]) -> Chunk:
    return Chunk(path, index, tuple(PlacedRow(*values) for values in fields))


def data_files(names: Sequence[str], dataset_dir: str = "data") -> list[Path]:
    """Return the files of data sets, named by path, or by name in the registry of `dataset_dir`.

    Errors: DataError for what does not exist or cannot be read, CapabilityError for sets on the hub.
    """
    files: list[Path] = []
    for name in names:
        config = DataConfig.model_validate({"dataset": (name,), "dataset_dir": dataset_dir})
        for source in find_sources(config, "train"):
            if source.hub is not None:
                raise CapabilityError(f"{name} is on the hub; only files are read here", fix="download it first")
            files += source.files
    return files


def read_chunks(files: Sequence[Path], size: int = ROWS) -> Iterator[Chunk]:
    """Yield the rows of all files in order; a chunk never spans two files."""
    index = 0
    for path in files:
        rows = iter(open_rows(path).scan())
        while taken := tuple(_take(rows, size)):
            yield Chunk(str(path), index, taken)
            index += len(taken)


def _take(rows: Iterator[PlacedRow], size: int) -> Iterator[PlacedRow]:
    """Yield up to `size` rows, fewer when they are long."""
    weight = 0
    for row in islice(rows, size):
        yield row
        weight += _weight(row.value)
        if weight > CHARACTERS_HINT:
            return


def _weight(value: Any) -> int:
    """Return about how many characters a row has, without walking into it deeper than its columns."""
    parts = value.values() if isinstance(value, dict) else (value,)
    return sum(len(part) if isinstance(part, str) else 1000 for part in parts)


def cores() -> int:
    """Return how many processes this one may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def chunk_texts(chunk: Chunk, columns: Sequence[str], only: Sequence[str], *,
                skip_bad: bool) -> list[str | DataError]:
    """Return the text of each row: its fields, or those called `only`, joined; for a bad row the error, if skipped."""
    return [_text_or_error(chunk, row, columns, only, skip_bad=skip_bad) for row in chunk.rows]


def _text_or_error(chunk: Chunk, row: PlacedRow, columns: Sequence[str], only: Sequence[str], *,
                   skip_bad: bool) -> str | DataError:
    try:
        return joined([one for one in fields_of(row, chunk.path, columns) if one.is_one_of(only)])
    except DataError as error:
        if not skip_bad:
            raise
        return error


def fields_of(row: PlacedRow, path: str, columns: Sequence[str]) -> list[TextField]:
    """Return the texts of a row. Errors: DataError with the place for a row that cannot be read or has no text."""
    if row.error:
        raise row.error
    try:
        return text_fields(row.value, columns)
    except RowProblem as problem:
        raise DataError(str(problem), where=f"{path}:{row.line or row.number}",
                        fix="name the columns of text (columns: ...), or set on_bad_row: skip") from None


def map_ordered(function: Callable[[Chunk], Result], chunks: Iterator[Chunk], workers: int | None) -> Iterator[Result]:
    """Yield `function(chunk)` for each chunk in order. `function` must be picklable.

    `workers` None means all cores, and no further process at all for a few chunks.
    """
    first = list(islice(chunks, FEW_CHUNKS + 1)) if workers is None else []
    chunks = chain(first, chunks)
    number = cores() if workers is None else workers
    if number == 1 or (workers is None and len(first) <= FEW_CHUNKS):
        yield from map(function, chunks)
        return
    yield from _in_processes(function, chunks, number)


def _in_processes(function: Callable[[Chunk], Result], chunks: Iterator[Chunk], number: int) -> Iterator[Result]:
    pool = ProcessPoolExecutor(number, get_context("spawn"), _prepare, (function,))
    under_way: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            under_way.append(pool.submit(_run, chunk))
            if len(under_way) >= AHEAD * number:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise DataError("a worker process ended without a result, most likely for want of memory",
                        fix="set num_workers lower") from None
    finally:
        pool.shutdown(cancel_futures=True)


_PREPARED: dict[str, Callable[[Chunk], Any]] = {}


def _prepare(function: Callable[[Chunk], Any]) -> None:
    """Keep the function in the worker, so that it is sent once; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _PREPARED["function"] = function


def _run(chunk: Chunk) -> Any:
    return _PREPARED["function"](chunk)
