"""MOSS rows: `chat: {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}}` with markers in the text.

`<|Human|>: ... <eoh>` and its relatives are taken off. `meta_instruction` is the system turn. In a round that uses a
plug-in, the command is an assistant turn of its own (its text as written, the inner thoughts as its reasoning), the
results are a tool turn, and the answer follows; a round whose command is `None` is question and answer, with the
inner thoughts, if any, as the answer's reasoning.
"""

import re
from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Message, Origin, Role
from danlu.data.row_format import (
    FORMATS,
    Layout,
    Row,
    RowFormat,
    RowProblem,
    kind_of,
    mapping_at,
    optional_text_at,
    text_at,
)
from danlu.data.turns import Turn, build_conversation, system_turn

MARKERS = re.compile(r"^\s*<\|[A-Za-z ]+\|>:?|<eo[htcrma]>\s*$")
TURN_KEY = re.compile(r"turn_(\d+)$")


@FORMATS.register("moss")
class Moss(RowFormat):
    """Turns are ordered by their number."""

    def matches(self, row: Row) -> bool:
        chat = row.get("chat") if isinstance(row, Mapping) else None
        return isinstance(chat, Mapping) and any(TURN_KEY.match(str(key)) for key in chat)

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation:
        row = mapping_at(row)
        chat = mapping_at(row.get("chat"), "/chat")
        turns = system_turn(optional_text_at(row, ("meta_instruction",)), "/meta_instruction")
        for number, key in sorted((_number(key), key) for key in chat if chat[key] is not None):
            turns += _round(mapping_at(chat[key], f"/chat/{key}"), f"/chat/turn_{number}")
        return build_conversation(turns, origin, pointer="/chat")


def _number(key: str) -> int:
    match = TURN_KEY.match(key)
    if not match:
        raise RowProblem(f"/chat/{key}", kind_of(key), "keys turn_1, turn_2, ...")
    return int(match[1])


def _round(fields: Mapping[str, Any], pointer: str) -> list[Turn]:
    def turn(role: Role, key: str, reasoning: str | None = None) -> Turn:
        return Turn(Message(role, strip_markers(text_at(fields, (key,), pointer)), reasoning=reasoning),
                    f"{pointer}/{key}")

    thoughts = _used(fields, "Inner Thoughts", pointer)
    turns = [turn("user", "Human")]
    if _used(fields, "Commands", pointer) is None:
        return [*turns, turn("assistant", "MOSS", thoughts)]
    return [*turns, turn("assistant", "Commands", thoughts), turn("tool", "Tool Responses"), turn("assistant", "MOSS")]


def _used(fields: Mapping[str, Any], key: str, pointer: str) -> str | None:
    text = strip_markers(optional_text_at(fields, (key,), pointer))
    return None if text in ("", "None") else text


def strip_markers(text: str) -> str:
    """Return the words between `<|Name|>:` and the end marker."""
    return MARKERS.sub("", text).strip()
