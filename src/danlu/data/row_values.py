"""The values inside a row: looked up with words for what is missing. Knows nothing of formats."""

import re
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
Row = Any  # what one line or element of a file holds: mostly a mapping, sometimes a list or a string


class RowProblem(Exception):
    """A row that its format cannot read: JSON pointer of the value, what was found, what was expected."""

    def __init__(self, pointer: str, found: str, expected: str) -> None:
        self.pointer, self.found, self.expected = pointer, found, expected
        super().__init__(f"{pointer or '/'}: found {found}, expected {expected}")


def kind_of(value: Any) -> str:
    """Return `value` in words for an error message: `42 (number)`, `null`, `"abc" (string)`."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    if value is None:
        return "null"
    shown = repr(value) if not isinstance(value, str) else f'"{value}"'
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({names.get(type(value), type(value).__name__)})"


def keys_of(row: Mapping[str, Any]) -> str:
    """Return the keys of a row in words for an error message."""
    return f"the keys {', '.join(map(str, row)) or '(none)'}"


def first_present(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of `names` that the row has, None when it has none."""
    for name in names:  # a generator costs three times as much, and this runs several times a row
        if name in row:
            return name
    return None


def text_at(row: Mapping[str, Any], names: tuple[str, ...], pointer: str = "") -> str:
    """Return the string that a row must have under one of `names`."""
    name = first_present(row, names)
    if name is None:
        raise RowProblem(pointer, keys_of(row), f"a key {' or '.join(names)}")
    if not isinstance(row[name], str):
        raise RowProblem(f"{pointer}/{name}", kind_of(row[name]), "a string")
    text = str(row[name])
    if not text.isascii() and (half := _SURROGATE.search(text)):
        shown = ascii(half.group())[1:-1]
        raise RowProblem(f"{pointer}/{name}", f"half of a character ({shown})", "text that UTF-8 holds")
    return text


def optional_text_at(row: Mapping[str, Any], names: tuple[str, ...], pointer: str = "") -> str:
    """Return the string a row may have under one of `names`; "" when absent or null."""
    name = first_present(row, names)
    return "" if name is None or row[name] is None else text_at(row, (name,), pointer)


def mapping_at(row: Row, pointer: str = "") -> Mapping[str, Any]:
    """Return the row as a mapping."""
    if not isinstance(row, Mapping):
        raise RowProblem(pointer, kind_of(row), "an object")
    return row


def flag_at(row: Mapping[str, Any], names: tuple[str, ...], pointer: str = "") -> bool:
    """Return the yes or no that a row must have under one of `names`; CSV files spell it out."""
    name = first_present(row, names)
    if name is None:
        wanted = f"a key {' or '.join(names)}" if names else "a verdict column, declared as kto_tag"
        raise RowProblem(pointer, keys_of(row), wanted)
    value = row[name].strip().lower() if isinstance(row[name], str) else row[name]
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0"):
        return False
    raise RowProblem(f"{pointer}/{name}", kind_of(row[name]), "true or false")
