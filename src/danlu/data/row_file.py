"""What a data file is: rows that can be walked through once and read again by their place, without holding them.

A reader is one file in `danlu.data.readers`, registered under the suffixes it reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from danlu.core.errors import DataError
from danlu.core.registry import Registry


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row: 1-based number (line, for line-based files), place in the file, value or error, line it starts on."""

    number: int
    place: int
    value: Any
    error: DataError | None = None
    line: int | None = None


class RowFile(Protocol):
    """A file of rows. `place` means something to this file only: a byte offset, or a row index."""

    path: Path

    def scan(self) -> Iterator[PlacedRow]:
        """Yield every row in order. Errors that end the file are raised, errors of one row are given with it."""

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        """Yield the row at `place`, whose number this is, and every row behind it, without reading what is before."""

    def read(self, place: int) -> Any:
        """Return the value of the row at `place`, as `scan` gave it."""


ROW_FILES: Registry[type[Any]] = Registry("file type", "danlu.data.readers")
PACKED = {".gz": "gzip", ".zst": "zstd"}
LONGEST_ROW = 1 << 26  # bytes; more than this without an end is not a row but a file of another kind


def open_rows(path: Path) -> RowFile:
    """Return the reader for the file's type."""
    opened: RowFile = ROW_FILES[file_type(path)](path)
    return opened


def file_type(path: Path) -> str:
    """Return the suffix that says what the rows look like: `jsonl` for `a.jsonl` and `a.jsonl.gz`."""
    name = Path(path.stem) if packing_of(path) else path
    return name.suffix.lower().lstrip(".")


def packing_of(path: Path) -> str:
    """Return `gz` or `zst` for a packed file, "" otherwise."""
    suffix = path.suffix.lower()
    return suffix.lstrip(".") if suffix in PACKED else ""


def too_long(path: Path, line: int, unit: str) -> DataError:
    """Return the error for a row that does not end within LONGEST_ROW."""
    return DataError(
        f"the {unit} is longer than {LONGEST_ROW >> 20} MiB, which is no row", where=f"{path}:{line}",
        fix="give every row a line of its own (a list in one line is read when the file is named .json)")


def decode(raw: bytes, path: Path, line: int | None, offset: int) -> str:
    """Return UTF-8 text. Errors: DataError with the line and byte position of the first wrong byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[:error.start]
        number = line if line is not None else before.count(b"\n") + 1
        wrong = raw[error.start:error.start + 4].hex(" ")
        raise DataError(
            f"not UTF-8: byte {offset + error.start} of the file ({wrong}) is no character",
            where=f"{path}:{number}", fix=_encoding_hint(raw, error.start)) from None


def _encoding_hint(raw: bytes, start: int) -> str:
    guess = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "gb18030"
    try:
        raw[max(0, start - 200):start + 200].decode(guess, errors="strict" if guess == "utf-16" else "ignore")
    except UnicodeDecodeError:
        guess = "its-encoding"
    return f"save the file as UTF-8, for example: iconv -f {guess} -t utf-8 OLD > NEW"


def json_error(error: Exception, path: Path, line: int, column: int, text: str, position: int) -> DataError:
    """Return `file:line:column: what`, with the text around the place."""
    start, end = max(0, position - 30), min(len(text), position + 30)
    reason = getattr(error, "msg", str(error))
    shown = text[start:position] + " >>>" + text[position:end].rstrip("\n")
    return DataError(
        f"broken JSON, {reason}: {shown!r} (the arrows show where)", where=f"{path}:{line}:{column}",
        fix="mend the row, or set on_bad_row: skip for files of one JSON value a line")
