"""A .json file: a list of rows, an object that wraps such a list, one row, or in truth JSON lines."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.readers.lines import BOM, JsonLines
from danlu.data.row_file import ROW_FILES, PlacedRow, decode, json_error

WRAPPERS = ("data", "rows", "examples", "records", "train")
BLANK = " \t\r\n"


@ROW_FILES.register("json")
class JsonFile:
    """Rows are elements of the list, numbered from 1; one element is parsed at a time, the text is in memory once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[PlacedRow]:
        if self._lines:
            yield from self._lines.scan()
            return
        text = self._text
        start = _skip_blank(text, 0)
        if start == len(text):
            return
        if text[start] == "[":
            yield from self._elements(text, start)
            return
        value, end = self._decode(text, start)
        self._nothing_after(text, end)
        wrapped = next((value[name] for name in WRAPPERS if isinstance(value, dict)
                        and isinstance(value.get(name), list)), [value])
        for number, row in enumerate(wrapped, 1):
            yield PlacedRow(number, -number, row)

    def read(self, place: int) -> Any:
        if self._lines:
            return self._lines.read(place)
        if place < 0:
            return next(row.value for row in self.scan() if row.place == place)
        return self._decode(self._text, place)[0]

    @cached_property
    def _text(self) -> str:
        raw = self.path.read_bytes()
        skipped = len(BOM) if raw.startswith(BOM) else 0
        return decode(raw[skipped:], self.path, None, skipped)

    @cached_property
    def _lines(self) -> JsonLines | None:
        """A reader of lines when the first line is a whole object and more text follows."""
        with self.path.open("rb") as file:
            first = file.readline().removeprefix(BOM)
            has_more = any(line.strip() for line in file)
        if not has_more or not first.lstrip().startswith(b"{"):
            return None
        try:
            json.loads(first)
        except ValueError:
            return None
        return JsonLines(self.path)

    def _elements(self, text: str, start: int) -> Iterator[PlacedRow]:
        position, number = _skip_blank(text, start + 1), 0
        line = text.count("\n", 0, position) + 1
        while text[position:position + 1] != "]":
            value, end = self._decode(text, position)
            number += 1
            yield PlacedRow(number, position, value, line=line)
            begin, position = position, _skip_blank(text, end)
            separator = text[position:position + 1]
            if separator not in (",", "]"):
                raise self._broken(json.JSONDecodeError("',' or ']' expected after this row", text, position))
            if separator == ",":
                position = _skip_blank(text, position + 1)
            line += text.count("\n", begin, position)
        self._nothing_after(text, position + 1)

    def _decode(self, text: str, position: int) -> tuple[Any, int]:
        try:
            return json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise self._broken(error) from None

    def _nothing_after(self, text: str, end: int) -> None:
        position = _skip_blank(text, end)
        if position < len(text):
            problem = json.JSONDecodeError("text after the end of the first value", text, position)
            raise DataError(self._broken(problem).what, where=f"{self.path}:{problem.lineno}:{problem.colno}",
                            fix="if each line is a row of its own, name the file .jsonl")

    def _broken(self, error: json.JSONDecodeError) -> DataError:
        return json_error(error, self.path, error.lineno, error.colno, error.doc, error.pos)


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANK:
        position += 1
    return position
