"""Plain text: a string, a column named by the user, `text`, `content`, or the only column of strings."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Message, Origin, Prompt, Text
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, first_present, mapping_at, text_at
from danlu.data.turns import Dialogue, Turn

USUAL = ("text", "content")


@FORMATS.register("text")
class PlainText(RowFormat):
    """Prose without turns: pre-training takes it, and fine-tuning trains on all of it."""

    is_dialogue = False
    kinds = (Text, Conversation, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        if isinstance(row, str):
            return True
        return isinstance(row, Mapping) and (
            first_present(row, USUAL) is not None or len(_string_columns(row)) == 1)

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Text:
        return self.text(row, layout, origin)

    def text(self, row: Row, layout: Layout, origin: Origin) -> Text:
        return Text(row if isinstance(row, str) else self._column(mapping_at(row), layout), origin)

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        """Return the text as a question: so a prompt is read from it."""
        name = None if isinstance(row, str) else self._name(mapping_at(row), layout)
        text = row if isinstance(row, str) else text_at(row, (name,) if name else USUAL)
        return Dialogue((Turn(Message("user", text), f"/{name or ''}"),), columns=frozenset({name} if name else ()))

    def _column(self, row: Mapping[str, object], layout: Layout) -> str:
        name = self._name(row, layout)
        return text_at(row, (name,) if name else layout.column("prompt", *USUAL))

    def _name(self, row: Mapping[str, object], layout: Layout) -> str | None:
        if layout.text_column:
            return layout.text_column
        names = layout.column("prompt", *USUAL)
        only = _string_columns(row)
        if layout.columns is None and first_present(row, names) is None and len(only) == 1:
            return only[0]
        return first_present(row, names)


def _string_columns(row: Mapping[str, object]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, str)]
