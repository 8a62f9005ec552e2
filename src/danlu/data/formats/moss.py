"""MOSS rows: `chat: {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}}` with markers in the text.

`<|Human|>: ... <eoh>` and its relatives are taken off. `meta_instruction` is the system turn. In a round that uses a
plug-in, the command is an assistant turn of its own (its text as written, the inner thoughts as its reasoning), the
results are a tool turn, and the answer follows; a round whose command is `None` is question and answer, with the
inner thoughts, if any, as the answer's reasoning. The same dialogue may stand in one text, `plain_text` or `chat`.
"""

import re
from collections.abc import Mapping
from typing import Any

from danlu.core.records import Message, Role
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
from danlu.data.turns import Dialogue, Turn, system_turn

MARKERS = re.compile(r"^\s*<\|[A-Za-z ]+\|>:?|<eo[htcrma]>\s*$")
TURN_KEY = re.compile(r"turn_(\d+)$")
SPEAKER = re.compile(r"(<\|(?:Human|Inner Thoughts|Commands|Results|MOSS)\|>|\[(?:Human|MOSS)\]):?[ \t]*")
PLAIN = ("plain_text", "chat")


@FORMATS.register("moss")
class Moss(RowFormat):
    """Turns are ordered by their number."""

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        if not isinstance(row, Mapping):
            return False
        chat = row.get("chat")
        in_turns = isinstance(chat, Mapping) and any(TURN_KEY.match(str(key)) for key in chat)
        return in_turns or any(isinstance(row.get(name), str) and SPEAKER.search(row[name]) for name in PLAIN)

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        row = mapping_at(row)
        turns = system_turn(optional_text_at(row, ("meta_instruction",)), "/meta_instruction")
        name = next((name for name in PLAIN if isinstance(row.get(name), str)), "chat")
        if isinstance(row.get(name), str):
            rounds = _spoken(row[name], f"/{name}")
        else:
            chat = mapping_at(row.get("chat"), "/chat")
            rounds = [(mapping_at(chat[key], f"/chat/{key}"), f"/chat/turn_{number}")
                      for number, key in sorted((_number(key), key) for key in chat if chat[key] is not None)]
        for fields, pointer in rounds:
            turns += _round(fields, pointer)
        return Dialogue(tuple(turns), f"/{name}", columns=frozenset({name, "meta_instruction"}))


def _spoken(text: str, pointer: str) -> list[tuple[Mapping[str, Any], str]]:
    """Return the rounds of a text of `<|Human|>: ... <eoh> <|MOSS|>: ... <eom>`, each a mapping of speaker to words."""
    parts = SPEAKER.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise RowProblem(pointer, kind_of(text), "a text that starts with <|Human|>:")
    rounds: list[dict[str, Any]] = []
    for speaker, words in zip(parts[1::2], parts[2::2], strict=True):
        speaker = speaker.strip("<|>[]")
        if speaker == "Human":
            rounds.append({})
        if not rounds or speaker in rounds[-1]:
            raise RowProblem(pointer, f"two turns of {speaker} in a row", "<|Human|> before each answer")
        rounds[-1]["Tool Responses" if speaker == "Results" else speaker] = words
    return [(fields, pointer) for fields in rounds]


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
