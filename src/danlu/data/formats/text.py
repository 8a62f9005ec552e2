"""Plain text: a string, a column named by the user, `text`, `content`, or the only column of strings."""

from collections.abc import Mapping

from danlu.core.records import Origin, Text
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, first_present, mapping_at, text_at

USUAL = ("text", "content")


@FORMATS.register("text")
class PlainText(RowFormat):
    """Prose without turns: pre-training takes it, and fine-tuning trains on all of it."""

    is_dialogue = False

    def matches(self, row: Row) -> bool:
        if isinstance(row, str):
            return True
        return isinstance(row, Mapping) and (
            first_present(row, USUAL) is not None or len(_string_columns(row)) == 1)

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Text:
        return self.text(row, layout, origin)

    def text(self, row: Row, layout: Layout, origin: Origin) -> Text:
        return Text(row if isinstance(row, str) else self._column(mapping_at(row), layout), origin)

    def _column(self, row: Mapping[str, object], layout: Layout) -> str:
        if layout.text_column:
            return text_at(row, (layout.text_column,))
        names = layout.column("prompt", *USUAL)
        if layout.columns is None and first_present(row, names) is None:
            only = _string_columns(row)
            names = (only[0],) if len(only) == 1 else names
        return text_at(row, names)


def _string_columns(row: Mapping[str, object]) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, str)]
