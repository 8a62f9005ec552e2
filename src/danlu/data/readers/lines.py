"""Files of one row a line: JSON lines and plain text. Blank lines are no rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.row_file import ROW_FILES, PlacedRow, decode, json_error

BOM = b"\xef\xbb\xbf"


class LineFile:
    """Lines by their byte offset; one line is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[PlacedRow]:
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                place, offset = offset, offset + len(raw)
                if raw.strip(b" \t\r\n" + BOM):
                    yield self._placed(number, place, raw)

    def read(self, place: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(place)
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

    def value(self, line: str, number: int) -> Any:
        """Return what the text of a line stands for."""
        raise NotImplementedError(f"{type(self).__name__}.value")


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
