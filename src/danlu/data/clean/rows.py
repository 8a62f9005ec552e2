"""The texts of a row, wherever its format keeps them: columns of text, or all turns of a dialogue.

A row keeps its shape: a text is found by its path and written back under it. Names, ids and tool definitions are no
text, so they are neither judged nor changed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.data.row_format import Row, RowProblem

TEXT_KEYS = frozenset((
    "text", "content", "value", "instruction", "input", "output", "response", "prompt", "completion", "query",
    "question", "answer", "target", "context", "system", "chosen", "rejected", "history", "human", "assistant",
    "meta_instruction", "Human", "MOSS", "Inner Thoughts", "reasoning", "reasoning_content", "passage", "document"))
HOLDERS = frozenset(("messages", "conversation", "conversations", "chat", "turns", "dialogue", "answers", "responses"))
TURN = re.compile(r"turn_\d+$")
ROLES = ("role", "from")
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class TextField:
    """One text of a row: the path to it, its value, and the role of its turn where it has one."""

    path: Path
    text: str
    role: str = ""

    @property
    def column(self) -> str:
        """The first name on the path, "" in a row that is a list or a string."""
        return next((part for part in self.path if isinstance(part, str)), "")

    @property
    def pointer(self) -> str:
        """The path as a JSON pointer with `*` for every index, the same for all rows of a data set."""
        return "/" + "/".join("*" if isinstance(part, int) or TURN.match(part) else part for part in self.path)

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Return whether a column or role of this name is meant by `names`."""
        return not names or self.role in names or any(part in names for part in self.path)


def text_fields(row: Row, columns: Sequence[str] = ()) -> list[TextField]:
    """Return the texts of a row in order; with `columns`, those below these columns only.

    Errors: RowProblem when the row has no text, or lacks every one of the columns.
    """
    if isinstance(row, str):
        return [TextField((), row)]
    if isinstance(row, list):
        found = list(_walk(row, ()))
    elif not isinstance(row, dict):
        raise RowProblem("", repr(row)[:60], "a string, a list of turns or an object")
    elif columns:
        found = [field for name in columns if name in row for field in _below(row[name], (name,))]
    else:
        found = list(_walk(row, ())) or _only_string(row)
    if not found:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else f"a list of {len(row)}"
        expected = f"text in {', '.join(columns)}" if columns else "a column of text; name it with `columns`"
        raise RowProblem("", f"the keys {keys or '(none)'}" if isinstance(row, dict) else keys, expected)
    return found


def joined(fields: Sequence[TextField]) -> str:
    """Return the texts of a row as one, a line break between them; empty ones are left out."""
    return "\n".join(field.text for field in fields if field.text)


def with_texts(row: Row, changes: dict[Path, str]) -> Row:
    """Return the row with other texts under these paths; the given row stays as it is."""
    for path, text in changes.items():
        row = _replaced(row, path, text)
    return row


def _replaced(value: Any, path: Path, text: str) -> Any:
    if not path:
        return text
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], text)
    return copy


def _walk(value: Any, path: Path, role: str = "") -> Iterator[TextField]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index), role)
        return
    if not isinstance(value, dict):
        return
    role = next((value[name] for name in ROLES if isinstance(value.get(name), str)), role)
    for name, item in value.items():
        if name in TEXT_KEYS:
            yield from _below(item, (*path, name), role)
        elif name in HOLDERS or TURN.match(str(name)):
            yield from _walk(item, (*path, name), role)


def _below(value: Any, path: Path, role: str = "") -> Iterator[TextField]:
    """Yield a string, the strings of (nested) lists, and the texts of turns."""
    if isinstance(value, str):
        yield TextField(path, value, role)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _below(item, (*path, index), role)
    else:
        yield from _walk(value, path, role)


def _only_string(row: dict[str, Any]) -> list[TextField]:
    strings = [name for name, value in row.items() if isinstance(value, str)]
    return [TextField((strings[0],), row[strings[0]])] if len(strings) == 1 else []
