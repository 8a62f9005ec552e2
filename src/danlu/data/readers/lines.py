"""Files of one row a line: JSON lines and plain text. Blank lines are no rows."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from danlu.core.errors import DataError
from danlu.data.readers.file_bytes import CHUNK, bytes_from, open_bytes
from danlu.data.row_file import LONGEST_ROW, ROW_FILES, PlacedRow, decode, json_error, too_long

BOM = b"\xef\xbb\xbf"


class LineFile(ABC):
    """Lines by their byte offset; one line is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[PlacedRow]:
        return self.scan_from(0, 1)

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        number, offset = number - 1, place
        with open_bytes(self.path) as file:
            file.seek(place)
            while raw := file.readline(LONGEST_ROW):
                number, place, offset = number + 1, offset, offset + len(raw)
                if len(raw) == LONGEST_ROW and not raw.endswith(b"\n"):
                    yield PlacedRow(number, place, None, too_long(self.path, number, "line"))
                    offset += _skip_line(file)
                elif raw.strip(b" \t\r\n" + BOM):
                    yield self._placed(number, place, raw)

    def read(self, place: int) -> Any:
        with bytes_from(self.path, place) as file:
            return self.parse(file.readline(), 0, place)

    def _placed(self, number: int, place: int, raw: bytes) -> PlacedRow:
        try:
            return PlacedRow(number, place, self.parse(raw, number, place))
        except DataError as error:
            return PlacedRow(number, place, None, error)

    def parse(self, raw: bytes, number: int, offset: int) -> Any:
        """Return the value of one line. Errors: DataError."""
        skipped = len(BOM) if offset == 0 and raw.startswith(BOM) else 0
        return self.value(decode(raw[skipped:], self.path, number, offset + skipped), number)

    @abstractmethod
    def value(self, line: str, number: int) -> Any:
        """Return what the text of a line stands for."""


def _skip_line(file: BinaryIO) -> int:
    """Pass over the rest of a line; return its length."""
    length = 0
    while part := file.readline(CHUNK):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


@ROW_FILES.register("jsonl", "ndjson", "jsonlines")
class JsonLines(LineFile):
    """One JSON value a line."""

    def value(self, line: str, number: int) -> Any:
        try:
            return json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            raise json_error(error, self.path, number, error.pos + 1, line, error.pos) from None
        except RecursionError as error:
            raise json_error(error, self.path, number, 1, line, 0) from None


@ROW_FILES.register("txt")
class TextLines(LineFile):
    """One text a line, in the column `text`."""

    def value(self, line: str, number: int) -> dict[str, str]:
        return {"text": line.rstrip("\r\n")}
