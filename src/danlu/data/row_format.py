"""What a data format is: one row of a file becomes one record. Knows nothing of files, tokens or templates.

A format is one file in `danlu.data.formats`. It overrides the readers of the record kinds it can give; a further kind
of record is one more method here and in the formats that have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Feedback, Origin, Preference, Prompt, Record, Text
from danlu.core.registry import Registry

Row = Any  # what one line or element of a file holds: mostly a mapping, sometimes a list or a string


class RowProblem(Exception):
    """A row that its format cannot read: JSON pointer of the value, what was found, what was expected."""

    def __init__(self, pointer: str, found: str, expected: str) -> None:
        self.pointer, self.found, self.expected = pointer, found, expected
        super().__init__(f"{pointer or '/'}: found {found}, expected {expected}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column holds what. None means undeclared: the format looks for its usual names.

    A declared mapping is complete: a column or tag that it does not list is absent.
    """

    columns: Mapping[str, str | None] | None = None
    tags: Mapping[str, str | None] | None = None
    text_column: str | None = None


    def column(self, role: str, *usual: str) -> tuple[str, ...]:
        """Return the names to look for `role` under, the best first."""
        if self.columns is None:
            return usual
        name = self.columns.get(role)
        return (name,) if name else ()


class RowFormat:
    """Base of every format."""

    is_dialogue: ClassVar[bool] = True

    def matches(self, row: Row) -> bool:
        """Say whether a row, seen without any declaration, is of this format."""
        raise NotImplementedError(f"{type(self).__name__}.matches")

    def read(self, row: Row, layout: Layout, origin: Origin, record_type: type[Record]) -> Record:
        """Return the record of kind `record_type` of the row; dialogue may come as Text (see `conversation`)."""
        readers = {
            Text: self.text, Conversation: self.conversation, Preference: self.preference,
            Feedback: self.feedback, Prompt: self.prompt,
        }
        record: Record = readers[record_type](row, layout, origin)
        return record

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation | Text:
        """Return the dialogue, or the prose when the row has nothing else (then all of it is trained)."""
        raise self._absent("dialogue", origin)

    def text(self, row: Row, layout: Layout, origin: Origin) -> Text:
        """Return the row as prose: the turns of its dialogue, one below the other."""
        record = self.conversation(row, layout, origin)
        if isinstance(record, Text):
            return record
        return Text("\n".join(message.content for message in record.messages if message.content), origin)

    def preference(self, row: Row, layout: Layout, origin: Origin) -> Preference:
        """Return one prompt with its answers, best first."""
        raise self._absent("preference pairs", origin)

    def feedback(self, row: Row, layout: Layout, origin: Origin) -> Feedback:
        """Return a dialogue with its verdict."""
        raise self._absent("verdicts", origin)

    def prompt(self, row: Row, layout: Layout, origin: Origin) -> Prompt:
        """Return the messages to be answered."""
        raise self._absent("prompts", origin)

    def _absent(self, kind: str, origin: Origin) -> DataError:
        return DataError(f"rows of the format {type(self).__name__} give no {kind}", where=str(origin))


FORMATS: Registry[type[RowFormat]] = Registry("data format", "danlu.data.formats")

DETECTION_ORDER = ("moss", "firefly", "sharegpt", "openai", "alpaca", "prompt_completion", "text")


def detect(row: Row) -> str | None:
    """Return the name of the format whose keys the row shows, None when none fits."""
    extra = [name for name in FORMATS if name not in DETECTION_ORDER]
    return next((name for name in (*DETECTION_ORDER, *extra) if FORMATS[name]().matches(row)), None)


def kind_of(value: Any) -> str:
    """Return `value` in words for an error message: `42 (number)`, `null`, `"abc" (string)`."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    if value is None:
        return "null"
    shown = repr(value) if not isinstance(value, str) else f'"{value}"'
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({names.get(type(value), type(value).__name__)})"


def first_present(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of `names` that the row has, None when it has none."""
    return next((name for name in names if name in row), None)


def text_at(row: Mapping[str, Any], names: tuple[str, ...], pointer: str = "") -> str:
    """Return the string that a row must have under one of `names`."""
    name = first_present(row, names)
    if name is None:
        raise RowProblem(pointer, f"the keys {', '.join(map(str, row)) or '(none)'}", f"a key {' or '.join(names)}")
    if not isinstance(row[name], str):
        raise RowProblem(f"{pointer}/{name}", kind_of(row[name]), "a string")
    return str(row[name])


def optional_text_at(row: Mapping[str, Any], names: tuple[str, ...], pointer: str = "") -> str:
    """Return the string a row may have under one of `names`; "" when absent or null."""
    name = first_present(row, names)
    return "" if name is None or row[name] is None else text_at(row, (name,), pointer)


def mapping_at(row: Row, pointer: str = "") -> Mapping[str, Any]:
    """Return the row as a mapping."""
    if not isinstance(row, Mapping):
        raise RowProblem(pointer, kind_of(row), "an object")
    return row
