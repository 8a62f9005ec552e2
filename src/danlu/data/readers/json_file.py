"""A .json file: a list of rows, an object that wraps such a list, one row, or in truth JSON lines.

The file is read in pieces and one row is parsed at a time, so that its size does not matter.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from danlu.core.console import notice
from danlu.core.errors import DataError
from danlu.data.readers.file_bytes import bytes_from, open_bytes
from danlu.data.readers.lines import BOM, JsonLines
from danlu.data.row_file import LONGEST_ROW, ROW_FILES, PlacedRow, decode, json_error, too_long

WRAPPERS = ("data", "rows", "examples", "records", "train")
BLANK = " \t\r\n"
DECODER = json.JSONDecoder()
WALK, GLANCE = 1 << 20, 1 << 13  # bytes read at first: on a walk through the file, for one row


@ROW_FILES.register("json")
class JsonFile:
    """Rows are elements of the list, numbered from 1; the place of a row is the byte where it starts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[PlacedRow]:
        if self.lines:
            yield from self.lines.scan()
            return
        with open_bytes(self.path) as file:
            text = _Text(self.path, file, WALK)
            opening = text.peek()
            if opening == "[":
                yield from _elements(text)
            elif opening == "{":
                yield from _object(text)
            elif opening:
                yield text.row(1)
            text.end()

    def scan_from(self, place: int, number: int) -> Iterator[PlacedRow]:
        if self.lines:
            yield from self.lines.scan_from(place, number)
            return
        with open_bytes(self.path) as file:
            file.seek(place)
            for row in _elements_on(_Text(self.path, file, WALK, byte=place), number, may_end=True):
                yield replace(row, line=None)

    def read(self, place: int) -> Any:
        if self.lines:
            return self.lines.read(place)
        with bytes_from(self.path, place) as file:
            return _Text(self.path, file, GLANCE, byte=place).row(0).value

    @cached_property
    def lines(self) -> JsonLines | None:
        """A reader of lines when the first line is a whole object and more text follows."""
        with open_bytes(self.path) as file:
            head = file.read(GLANCE).removeprefix(BOM).lstrip()
            if not head.startswith(b"{"):
                return None
        with open_bytes(self.path) as file:
            first = file.readline(LONGEST_ROW).removeprefix(BOM)
            while first.endswith(b"\n") and not first.strip():
                first = file.readline(LONGEST_ROW)
            if not any(line.strip() for line in iter(lambda: file.readline(GLANCE), b"")):
                return None
        try:
            return JsonLines(self.path) if isinstance(json.loads(first), dict) else None
        except (ValueError, RecursionError):
            return None


class _Text:
    """The text of a file from some byte on, decoded piece by piece, with the place of the reader in it."""

    def __init__(self, path: Path, file: BinaryIO, size: int, byte: int = 0) -> None:
        self.path, self.byte, self.line, self.column = path, byte, 1, 1
        self._file, self._size, self._undecoded = file, size, b""
        self._read_to = byte
        self._text, self._at, self._is_whole = "", 0, False

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end; the reader stands before it."""
        while True:
            start = self._at
            while start < len(self._text) and self._text[start] in BLANK:
                start += 1
            self._move(start)
            if start < len(self._text) or self._is_whole:
                return self._text[start:start + 1]
            self._more()

    def take(self, wanted: str, expected: str) -> str:
        """Pass over one of the characters `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise self._broken(json.JSONDecodeError(f"{expected} expected", self._text, self._at))
        self._move(self._at + 1)
        return found

    def row(self, number: int) -> PlacedRow:
        """Return the JSON value that starts here as a row."""
        self.peek()
        place, line = self.byte, self.line
        return PlacedRow(number, place, self.value(), line=line)

    def value(self) -> Any:
        """Return the JSON value that starts here. Errors: DataError with line and column."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                # A number that ends with the piece, or before "." or "e", may go on in the next.
                if self._is_whole or (end < len(self._text) and self._text[end] not in ".eE"):
                    self._move(end)
                    return value
            except json.JSONDecodeError as error:
                if self._is_whole:
                    raise self._broken(error) from None
                self._refuse_endless(error)
            except RecursionError as error:
                raise json_error(error, self.path, self.line, self.column, self._text, self._at) from None
            self._more()

    def name(self) -> str:
        """Return the name of a member of an object, and pass over its colon."""
        if self.peek() != '"':
            raise self._broken(json.JSONDecodeError("a name in double quotes expected", self._text, self._at))
        name = self.value()
        self.take(":", "':'")
        return str(name)

    def end(self) -> None:
        """Refuse text after the end of the first value."""
        if self.peek():
            broken = json.JSONDecodeError("text after the end of the first value", self._text, self._at)
            raise DataError(self._broken(broken).what, where=f"{self.path}:{self.line}:{self.column}",
                            fix="if each line is a row of its own, name the file .jsonl")

    def _refuse_endless(self, error: json.JSONDecodeError) -> None:
        if len(self._text) - self._at <= LONGEST_ROW:
            return
        may_go_on = error.msg.startswith("Unterminated") or error.pos > len(self._text) - GLANCE
        raise too_long(self.path, self.line, "row") if may_go_on else self._broken(error)

    def _move(self, to: int) -> None:
        if to == self._at:
            return
        passed = self._text[self._at:to]
        self.byte += len(passed) if passed.isascii() else len(passed.encode())
        breaks = passed.count("\n")
        self.line += breaks
        self.column = len(passed) - passed.rfind("\n") if breaks else self.column + len(passed)
        self._at = to

    def _more(self) -> None:
        """Read on; twice as much as is waiting, so that a long row is not parsed too often."""
        waiting = self._text[self._at:]
        size = max(self._size, min(len(waiting), LONGEST_ROW - len(waiting)))
        raw = self._undecoded + self._file.read(size)
        self._is_whole = len(raw) == len(self._undecoded)
        if self._read_to == 0 and raw.startswith(BOM):
            raw, self._read_to, self.byte = raw[len(BOM):], len(BOM), len(BOM)
        usable = raw if self._is_whole else raw[:_last_boundary(raw)]
        try:
            new = usable.decode()
        except UnicodeDecodeError as error:
            line = self.line + waiting.count("\n") + usable.count(b"\n", 0, error.start)
            new = decode(usable, self.path, line, self._read_to)
        self._undecoded, self._read_to = raw[len(usable):], self._read_to + len(usable)
        self._text, self._at = waiting + new, 0

    def _broken(self, error: json.JSONDecodeError) -> DataError:
        before = self._text[self._at:error.pos]
        breaks = before.count("\n")
        column = len(before) - before.rfind("\n") if breaks else self.column + len(before)
        return json_error(error, self.path, self.line + breaks, column, self._text, error.pos)


def _elements(text: _Text) -> Iterator[PlacedRow]:
    """Yield the elements of the list that starts here."""
    text.take("[", "'['")
    if text.peek() == "]":
        text.take("]", "']'")
        return
    yield from _elements_on(text, 1)


def _elements_on(text: _Text, number: int, *, may_end: bool = False) -> Iterator[PlacedRow]:
    """Yield the element that starts here, which has this number, and those behind it; a file may be one element."""
    while True:
        yield text.row(number)
        number += 1
        if may_end and not text.peek():
            return
        if text.take(",]", "',' or ']' after this row,") == "]":
            return
        if text.peek() == "]":
            text.take("]", "']'")
            return


def _object(text: _Text) -> Iterator[PlacedRow]:
    """Yield the elements of the list that an object wraps, or the object itself when it wraps none."""
    text.peek()
    place, line = text.byte, text.line
    fields: dict[str, Any] = {}
    wrapped = ""
    opening = text.take("{", "'{'")
    while opening != "}" and text.peek() != "}":
        key = text.name()
        if key in WRAPPERS and text.peek() == "[":
            if wrapped:
                raise DataError(f'two lists of rows in one object, "{wrapped}" and "{key}"',
                                where=f"{text.path}:{text.line}", fix="give every list a file of its own")
            wrapped = key
            yield from _elements(text)
        else:
            fields[key] = text.value()
        opening = text.take(",}", "',' or '}'")
    if opening != "}":
        text.take("}", "'}'")
    if not wrapped:
        yield PlacedRow(1, place, fields, line=line)
    elif lists := [key for key, value in fields.items() if isinstance(value, list)]:
        notice(f'{text.path}: the rows are the list "{wrapped}"; {", ".join(lists)} is not read')


def _last_boundary(raw: bytes) -> int:
    """Return where the last whole UTF-8 character ends, looking back three bytes at most."""
    for back in range(1, min(4, len(raw)) + 1):
        lead = raw[-back]
        if lead < 0x80:
            return len(raw)
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(raw) if back >= needed else len(raw) - back
    return len(raw)
