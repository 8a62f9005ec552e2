"""How many rows a file has and where every thousandth begins: found in one pass, then kept in the cache."""

import hashlib
import os
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import notice
from danlu.data import fingerprint
from danlu.data.dataset import cache_root, locked
from danlu.data.readers.file_bytes import open_bytes
from danlu.data.readers.json_file import JsonFile
from danlu.data.readers.lines import BOM, LineFile
from danlu.data.row_file import RowFile, packing_of

EVERY = 1024
CHUNK = 1 << 22
EDGE = 1 << 16
BLANK = b" \t\r\n" + BOM


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Number of rows, a hash of the contents, and place and number of the rows 0, EVERY, 2 EVERY, ..."""

    count: int
    digest: str
    places: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def before(self, row: int) -> tuple[int, int, int]:
        """Return the nearest known row that is not behind `row` (from 0), with its place and number."""
        known = row // EVERY
        return known * EVERY, int(self.places[known]), int(self.numbers[known])


def index_of(file: RowFile, *, anew: bool = False) -> RowIndex:
    """Return the index of a file, from the cache when its size, date and edges are the same.

    Errors: DataError where the file is damaged.
    """
    path = file.path
    if not path.is_file():
        return _by_scan(file)
    if packing_of(path):
        notice(f"{path} is packed: its rows are counted by unpacking it once, and a resumed run unpacks it again up to "
               "its place; an unpacked file is read from there at once")
    kept = cache_root() / "rows" / f"{_key(path)}.npz"
    with locked(kept):
        index = None if anew else _kept(kept)
        if index is None:
            index = _build(file)
            _keep(index, kept)
    return index


def _build(file: RowFile) -> RowIndex:
    lines = file.lines if isinstance(file, JsonFile) else file if isinstance(file, LineFile) else None
    return _by_scan(file) if lines is None else _by_lines(lines.path)


def _by_scan(file: RowFile) -> RowIndex:
    count, places, numbers = 0, array("q"), array("q")
    for row in file.scan():
        if count % EVERY == 0:
            places.append(row.place)
            numbers.append(row.number)
        count += 1
    digest = fingerprint.of_files([file.path]) if file.path.is_file() else fingerprint.of_values(str(file.path), count)
    return RowIndex(count, digest, np.array(places, np.int64), np.array(numbers, np.int64))


def _by_lines(path: Path) -> RowIndex:
    """Count the lines that are not blank, as `LineFile.scan` does, without decoding them."""
    doubtful = np.zeros(256, np.bool_)
    doubtful[list(BLANK)] = True
    digest = hashlib.blake2b(digest_size=20)
    count = line = at = begun = 0
    has_content = False  # of the line that the last chunk broke off in
    places, numbers = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for data in _chunks(path):
        digest.update(data)
        bytes_ = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(bytes_ == 10)
        if len(ends):
            starts = np.concatenate([[0], ends[:-1] + 1])
            is_row = ~doubtful[bytes_[starts]]
            for index in np.flatnonzero(~is_row).tolist():
                is_row[index] = bool(data[starts[index]:ends[index]].strip(BLANK))
            is_row[0] |= has_content
            rows = np.flatnonzero(is_row)
            chosen = rows[-count % EVERY::EVERY]
            offsets = starts + at
            offsets[0] = begun
            places.append(offsets[chosen])
            numbers.append(line + chosen + 1)
            count, line, begun = count + len(rows), line + len(ends), at + int(ends[-1]) + 1
            has_content = False
        has_content = has_content or bool(data[max(0, begun - at):].strip(BLANK))
        at += len(data)
    if has_content and count % EVERY == 0:
        places.append(np.array([begun]))
        numbers.append(np.array([line + 1]))
    none = np.zeros(0, np.int64)
    return RowIndex(count + has_content, digest.hexdigest(), np.concatenate([none, *places]).astype(np.int64),
                    np.concatenate([none, *numbers]).astype(np.int64))


def _chunks(path: Path) -> Iterator[bytes]:
    with open_bytes(path) as file:
        while data := file.read(CHUNK):
            yield data


def _key(path: Path) -> str:
    facts = path.stat()
    edges = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        edges.update(file.read(EDGE))
        file.seek(max(0, facts.st_size - EDGE))
        edges.update(file.read(EDGE))
    return fingerprint.of_values(str(path.resolve()), facts.st_size, facts.st_mtime_ns, edges.hexdigest(), EVERY,
                                 fingerprint.of_code())


def _kept(kept: Path) -> RowIndex | None:
    """Return the index of a cache file; None when there is none, or a damaged one."""
    try:
        with np.load(kept) as loaded:
            return RowIndex(int(loaded["count"]), str(loaded["digest"]), loaded["places"], loaded["numbers"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _keep(index: RowIndex, kept: Path) -> None:
    partial = kept.with_name(f"{kept.stem}.partial-{os.getpid()}.npz")
    try:
        np.savez(partial, count=index.count, digest=index.digest, places=index.places, numbers=index.numbers)
        partial.rename(kept)
    finally:
        partial.unlink(missing_ok=True)
