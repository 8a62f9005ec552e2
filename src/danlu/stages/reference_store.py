"""Log-probabilities kept on disk by content, shared by epochs, runs and processes. Knows no model and no stage.

One file of records, only ever appended to:

    DLR1 | key (16) | number of values (4) | CRC-32 of key and values (4) | values, float32

A writer holds the lock, reads first what others have added, and leaves out what is there by now: each key has one
value, whoever computed it. What a killed writer left half written is cut off by the next one; a record whose checksum
is wrong counts as absent, and the later of two records of a key holds.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import notice
from danlu.data.dataset import locked

MAGIC = b"DLR1"
HEADER = struct.Struct("<4s16sII")
MIB = 2**20

Values = NDArray[np.float32]


class ReferenceStore:
    """The values of each key that was ever added to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "logps.bin"
        self._places: dict[bytes, int] = {}
        self._end = 0
        self._writes = True
        self._refresh()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Size of the records on disk."""
        return self._end

    def find(self, keys: Sequence[bytes]) -> list[Values | None]:
        """Return the values of each key, None where there are none."""
        if not self._places or not self._path.is_file():
            return [None] * len(keys)
        with self._path.open("rb") as file:
            return [self._read(file.fileno(), key) for key in keys]

    def add(self, keys: Sequence[bytes], values: Sequence[Values]) -> list[Values]:
        """Keep values under keys; return what holds now: the values that were there before, or else these.

        Values that are not finite are not kept. A disk that takes no more is told once and changes nothing else.
        """
        holding = [np.ascontiguousarray(one, np.float32) for one in values]
        if not self._writes:
            return holding
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                return self._add(keys, holding)
        except OSError as error:
            self._writes = False
            notice(f"reference log-probabilities are not kept: {error.strerror or error} ({self.folder})")
            return holding

    def _add(self, keys: Sequence[bytes], values: list[Values]) -> list[Values]:
        self._refresh()
        found = self.find(keys)
        fresh: dict[bytes, Values] = {}
        for key, before, one in zip(keys, found, values, strict=True):
            if before is None and np.isfinite(one).all():
                fresh.setdefault(key, one)
        if fresh:
            self._append(fresh)
        return [before if before is not None else fresh.get(key, one)
                for key, before, one in zip(keys, found, values, strict=True)]

    def _append(self, fresh: dict[bytes, Values]) -> None:
        places, parts, end = {}, [], self._end
        for key, one in fresh.items():
            record = HEADER.pack(MAGIC, key, len(one), _checksum(key, one.tobytes())) + one.tobytes()
            places[key] = end
            parts.append(record)
            end += len(record)
        with self._path.open("ab") as file:
            file.truncate(self._end)
            try:
                file.write(b"".join(parts))
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), self._end)
                raise
        self._places |= places
        self._end = end

    def _refresh(self) -> None:
        """Read the places of records that were added since; stop before one that is not whole."""
        if not self._path.is_file():
            self._places, self._end = {}, 0
            return
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self._end:
                self._places, self._end = {}, 0
            while self._end + HEADER.size <= size:
                magic, key, count, _ = HEADER.unpack(os.pread(file.fileno(), HEADER.size, self._end))
                end = self._end + HEADER.size + 4 * count
                if magic != MAGIC or end > size:
                    return
                self._places[key] = self._end
                self._end = end

    def _read(self, file: int, key: bytes) -> Values | None:
        place = self._places.get(key)
        if place is None:
            return None
        header = os.pread(file, HEADER.size, place)
        if len(header) == HEADER.size:
            magic, found, count, checksum = HEADER.unpack(header)
            content = os.pread(file, 4 * count, place + HEADER.size)
            if magic == MAGIC and found == key and checksum == _checksum(key, content):
                return np.frombuffer(content, np.float32)
        del self._places[key]
        return None


def _checksum(key: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key))
