"""Reads calls of tools out of an answer: JSON values in a row, up to the end of the text. Anything else is no call."""

import json
import re
from collections.abc import Callable
from typing import Any

Call = dict[str, Any]
Read = tuple[list[Call], int]
"""Calls that stand one behind the other, and where they end; the end of the text when nothing follows them."""
_SPACE = re.compile(r"\s*")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def value_at(text: str, at: int) -> tuple[Any, int] | None:
    """Return the JSON value that begins at `at` and where it ends; None when there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def skip(text: str, at: int) -> int:
    """Return the next place that is not white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def call_of(name: Any, arguments: Any) -> Call | None:
    """Return a call, or None when the name is no text or the arguments are no object."""
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def named_call(value: Any, key: str) -> Call | None:
    """Return the call that an object {"name": ..., key: {...}} stands for; an "id" beside them is let pass."""
    if not isinstance(value, dict) or value.keys() - {"id"} != {"name", key}:
        return None
    return call_of(value["name"], value[key])


def calls_until_end(read_one: Callable[[str, int], tuple[Call, int] | None]) -> Callable[[str, int], Read]:
    """Return a reader of calls one behind the other, with white space between."""

    def read(text: str, at: int) -> Read:
        calls: list[Call] = []
        at = skip(text, at)
        while at < len(text):
            found = read_one(text, at)
            if found is None:
                break
            calls.append(found[0])
            at = skip(text, found[1])
        return calls, at

    return read


def json_calls(key: str) -> Callable[[str, int], Read]:
    """Return a reader of one object {"name": ..., key: {...}}, or a list of them."""

    def read(text: str, at: int) -> Read:
        found = value_at(text, at)
        if found is None:
            return [], at
        values = found[0] if isinstance(found[0], list) else [found[0]]
        calls = [named_call(value, key) for value in values]
        return [] if None in calls else [call for call in calls if call], skip(text, found[1])

    return read


def headed_call(head: re.Pattern[str], key: str | None = None, tail: str = "") -> Callable[[str, int], Read]:
    """Return a reader of calls that `head` begins and `tail` ends.

    With `key`: {"name": ..., key: {...}} between them. Without: `head` has the name as its group, the arguments follow.
    """

    def read_one(text: str, at: int) -> tuple[Call, int] | None:
        opened = head.match(text, at)
        found = value_at(text, skip(text, opened.end())) if opened else None
        if opened is None or found is None:
            return None
        call = named_call(found[0], key) if key else call_of(opened.group(1), found[0])
        end = skip(text, found[1]) if tail else found[1]
        return (call, end + len(tail)) if call and text.startswith(tail, end) else None

    return calls_until_end(read_one)
