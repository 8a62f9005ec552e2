"""The bytes of a data file from any offset; .gz and .zst files are unpacked on the way, never whole in memory."""

import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from danlu.core.console import notice
from danlu.core.errors import DataError
from danlu.data.row_file import PACKED, packing_of

CHUNK = 1 << 20
SIGNATURES = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
MOST_REWINDS = 4
MOST_UNPACKED_AT_ONCE = 32


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open the file's bytes for one walk from the start. Errors: DataError where a packed file is damaged."""
    file = io.BufferedReader(_Unpacked(path), CHUNK) if packing_of(path) else path.open("rb")
    with file:
        yield file


@contextmanager
def bytes_from(path: Path, offset: int) -> Iterator[BinaryIO]:
    """Open the bytes at `offset` (counted after unpacking). Packed files stay open, so that the next row is near."""
    if packing_of(path):
        facts = path.stat()
        yield _kept_open(path, os.getpid(), facts.st_mtime_ns, facts.st_size).at(offset)
        return
    with path.open("rb") as file:
        file.seek(offset)
        yield file


@contextmanager
def plain_file(path: Path) -> Iterator[Path]:
    """Give a path whose bytes are not packed: the file itself, or a copy that is removed after the block."""
    if not packing_of(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="danlu-", suffix=path.suffix) as copy:
        _unpack(path, copy)
        yield Path(copy.name)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file; going back starts from the beginning."""

    def __init__(self, path: Path) -> None:
        self.path, self.rewinds = path, 0
        self._start()

    def _start(self) -> None:
        self._inner, self._position, self._lines = _decompressor(self.path), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read1(len(buffer))  # `read` of gzip gives nothing of a block that breaks off
        except (EOFError, OSError, zlib.error) as error:
            self._check_packing()
            raise DataError(
                f"truncated or damaged {PACKED[self.path.suffix.lower()]} file: it breaks off after {self._position} "
                f"unpacked bytes ({error})", where=f"{self.path}:{self._lines + 1}",
                fix="download or pack the file again; what stands before that place is whole") from None
        buffer[:len(data)] = data
        self._position += len(data)
        self._lines += data.count(b"\n")
        return len(data)

    def _check_packing(self) -> None:
        """Refuse a file whose first bytes are not those of its kind of packing."""
        packing, begins = PACKED[self.path.suffix.lower()], self._first_bytes()
        if begins and not SIGNATURES[packing].startswith(begins):
            raise DataError(
                f"not {packing} data, as the name says: it begins with {begins!r}", where=f"{self.path}:1",
                fix=f"pack it, or take {self.path.suffix} off its name")

    def _first_bytes(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(len(SIGNATURES[PACKED[self.path.suffix.lower()]]))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a packed file is read from its start")
        if offset < self._position:
            self._inner.close()
            self._start()
            self.rewinds += 1
        waste = bytearray(CHUNK)
        while self._position < offset and self.readinto(memoryview(waste)[:offset - self._position]):
            pass
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class _KeptOpen:
    """A packed file that rows are read from; when they come out of order, it is unpacked to disk once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = _Unpacked(path)
        self._file: Any = io.BufferedReader(self._raw, CHUNK)
        self._damage: tuple[int, DataError] | None = None

    def at(self, offset: int) -> BinaryIO:
        if self._raw.rewinds >= MOST_REWINDS:
            notice(f"{self.path} is read out of order: it is unpacked to a temporary file")
            copy = tempfile.TemporaryFile(prefix="danlu-")  # noqa: SIM115 - open as long as rows are read
            try:
                _unpack(self.path, copy)
            except DataError as error:  # what stands before the damage is whole
                self._damage = copy.tell(), error
            self._raw.rewinds, self._file = 0, copy
        if self._damage is not None and offset >= self._damage[0]:
            raise self._damage[1]
        self._file.seek(offset)
        found: BinaryIO = self._file
        return found


@lru_cache(maxsize=MOST_UNPACKED_AT_ONCE)
def _kept_open(path: Path, process: int, changed: int, size: int) -> _KeptOpen:
    # A forked process shares its parent's file positions, so each has its own; an edited file is opened anew.
    return _KeptOpen(path)


def _unpack(path: Path, target: IO[bytes]) -> None:
    with _Unpacked(path) as source:
        while data := source.read(CHUNK):
            target.write(data)
    target.flush()


def _decompressor(path: Path) -> Any:
    if packing_of(path) == "gz":
        return gzip.open(path)
    import pyarrow as pa  # it brings a zstd codec of its own

    return pa.input_stream(str(path), compression="zstd", buffer_size=0)
