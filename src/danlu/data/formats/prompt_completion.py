"""Rows of one prompt and one answer under any of the usual names; both may be lists of messages."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Message, Origin
from danlu.data.formats.openai import read_messages
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, first_present, mapping_at, optional_text_at, text_at
from danlu.data.turns import Turn, build_conversation, system_turn

PROMPTS = ("prompt", "question", "query", "input", "instruction")
RESPONSES = ("completion", "response", "answer", "target", "output")


@FORMATS.register("prompt_completion")
class PromptCompletion(RowFormat):
    """One round; `system` may give the system turn."""

    def matches(self, row: Row) -> bool:
        return (isinstance(row, Mapping) and first_present(row, PROMPTS) is not None
                and first_present(row, RESPONSES) is not None)

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation:
        row = mapping_at(row)
        asked = _turns(row, layout.column("prompt", *PROMPTS), "user")
        answered = _turns(row, layout.column("response", *RESPONSES), "assistant")
        leading = system_turn(optional_text_at(row, layout.column("system", "system")), "/system")
        return build_conversation([*leading, *asked, *answered], origin)


def _turns(row: Mapping[str, Any], names: tuple[str, ...], role: str) -> list[Turn]:
    name = first_present(row, names)
    if name is not None and isinstance(row[name], list):
        return read_messages(row[name], f"/{name}")
    return [Turn(Message(role, text_at(row, names)), f"/{name}")]  # type: ignore[arg-type]
