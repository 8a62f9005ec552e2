"""Line and column of a JSON pointer of a row: reads the row's own text again."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from danlu.data.row_file import PlacedRow

LINES = (".jsonl", ".ndjson", ".jsonlines", ".json")
BOM = "\ufeff"
BLANK = " \t\r\n"
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
    line = row.line or (row.number if path.suffix.lower() in (*LINES, ".csv", ".tsv", ".txt") else None)
    if path.suffix.lower() not in LINES or row.value is None:
        return line, None
    text, start = _source_text(path, row)
    if not text or not _is_row(text, start, row.value):
        return line, None
    at = _find(text, start, _parts(pointer))
    if at is None:
        return line, None
    if inside:
        written = json.dumps(inside, ensure_ascii=False)[1:-1]
        at = max(at, text.find(written, at))
    before = text.rfind("\n", 0, at)
    return (line or 1) + text.count("\n", start, at), at - before


def _source_text(path: Path, row: PlacedRow) -> tuple[str, int]:
    """Return the text that holds the row, and where in it the row starts."""
    if row.line is not None:
        return _whole(path), row.place
    try:
        with path.open("rb") as file:
            file.seek(max(0, row.place))
            raw = file.readline() if row.place >= 0 else b""
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return "", 0
    return text, _skip(text, len(BOM) if text.startswith(BOM) else 0)


@lru_cache(maxsize=1)
def _whole(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _is_row(text: str, start: int, value: Any) -> bool:
    try:
        return bool(_DECODER.raw_decode(text, start)[0] == value)
    except (ValueError, RecursionError):
        return False


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
