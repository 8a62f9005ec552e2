"""Line and column of a JSON pointer of a row: the row's own text is read again."""

import json
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.data.readers.file_bytes import bytes_from
from danlu.data.row_file import LONGEST_ROW, PlacedRow, file_type, packing_of

LINES = ("jsonl", "ndjson", "jsonlines", "json")
TYPES_WITH_LINES = (*LINES, "csv", "tsv", "txt")
BOM = "\ufeff"
BLANK = " \t\r\n"
GLANCE = 1 << 14
_DECODER = json.JSONDecoder()


def value_at(value: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer; None where the row has none."""
    for part in _parts(pointer):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def pointer_to(value: Any, needle: str) -> str:
    """Return the JSON pointer of the first string that holds `needle`; "" when none does."""
    stack = [("", value)]
    while stack:
        pointer, one = stack.pop()
        if isinstance(one, str) and needle in one:
            return pointer
        if isinstance(one, dict):
            stack += [(f"{pointer}/{_escaped(str(key))}", item) for key, item in reversed(one.items())]
        elif isinstance(one, list):
            stack += [(f"{pointer}/{index}", item) for index, item in reversed(list(enumerate(one)))]
    return ""


def place_of(path: Path, row: PlacedRow, pointer: str, inside: str = "") -> tuple[int | None, int | None]:
    """Return line and column, from 1, of the value at `pointer`, or of `inside` within it.

    (line, None) for rows without columns, such as CSV; (None, None) for files without lines.
    """
    kind = file_type(path)
    line = row.line or (row.number if kind in TYPES_WITH_LINES else None)
    if kind not in LINES or row.value is None or line is None:
        return line, None
    text = _row_text(path, row)
    at = None if text is None else _find(text, _skip(text, 0), _parts(pointer))
    if text is None or at is None:
        return line, None
    if inside:
        at = max(at, text.find(json.dumps(inside, ensure_ascii=False)[1:-1], at))
    breaks, before = text.count("\n", 0, at), at - text.rfind("\n", 0, at)
    if breaks:
        return line + breaks, before
    start = _column(path, row)
    return line, None if start is None else start + at


def _row_text(path: Path, row: PlacedRow) -> str | None:
    """Return the text from the row's place on, at least to the row's end; None when it is not that row."""
    size = GLANCE
    while size <= 2 * LONGEST_ROW:
        try:
            with bytes_from(path, row.place) as file:
                raw = file.read(size)
        except (DataError, OSError):
            return None
        text = raw.decode("utf-8", "ignore").removeprefix(BOM if row.place == 0 else "")
        try:
            return text if _DECODER.raw_decode(text, _skip(text, 0))[0] == row.value else None
        except (ValueError, RecursionError):
            if len(raw) < size:
                return None
        size *= 4
    return None


def _column(path: Path, row: PlacedRow) -> int | None:
    """Return the column at which the row's text begins; None when that is not known."""
    if row.line is None:
        return 1
    if packing_of(path):
        return None
    back = min(row.place, GLANCE)
    with bytes_from(path, row.place - back) as file:
        raw = file.read(back)
    found = raw.rfind(b"\n")
    if found < 0 and back < row.place:
        return None
    return len(raw[found + 1:].decode("utf-8", "ignore").removeprefix(BOM)) + 1


def _find(text: str, at: int, parts: list[str]) -> int | None:
    """Return where the value at the path begins; the text is known to be whole JSON."""
    for part in parts:
        found = _member(text, at, part)
        if found is None:
            return None
        at = found
    return at


def _member(text: str, at: int, part: str) -> int | None:
    """Return where one member of the object or list at `at` begins."""
    opening, at, index = text[at], _skip(text, at + 1), 0
    if opening not in "{[":
        return None
    while text[at] not in "}]":
        key: Any = str(index)
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        if key == part:
            return at
        at = _skip(text, _DECODER.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
        index += 1
    return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in BLANK:
        at += 1
    return at


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
