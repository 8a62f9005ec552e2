"""Alpaca rows: instruction, input, output, and optionally history (pairs), system, tools.

Preference data has `chosen` and `rejected`, or a list as its output: the best answer first.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from danlu.core.records import Conversation, Feedback, Message, Origin, Preference, Prompt, Text
from danlu.data.answers import Answers, given_answers, has_pair, ranked_answers
from danlu.data.row_format import (
    FORMATS,
    Layout,
    Row,
    RowFormat,
    RowProblem,
    first_present,
    kind_of,
    mapping_at,
    optional_text_at,
    text_at,
)
from danlu.data.turns import Dialogue, Turn, parse_tools, system_turn

RESPONSES = ("output", "response")
QUERIES = ("input", "context")


@FORMATS.register("alpaca")
class Alpaca(RowFormat):
    """The user turn is the instruction and, a line below, the input."""

    kinds = (Text, Conversation, Preference, Feedback, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        if not isinstance(row, Mapping) or "instruction" not in row:
            return False
        name = first_present(row, RESPONSES)
        if kind is Preference:
            return has_pair(row) or (name is not None and isinstance(row[name], list))
        return name is not None or kind is Prompt or (kind is None and has_pair(row))

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation | Text:
        if layout.column("response", *RESPONSES):
            return super().conversation(row, layout, origin)
        return Text(text_at(mapping_at(row), layout.column("prompt", "instruction")), origin)

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        asked, row = self.asked(row, layout), mapping_at(row)
        names = layout.column("response", *RESPONSES)
        name = first_present(row, names)
        if name is not None and isinstance(row[name], list):
            found = f"a list of {len(row[name])} answers"
            raise RowProblem(f"/{name}", found, "one string (a list is preference data)")
        answer = Turn(Message("assistant", text_at(row, names)), f"/{name}")
        return replace(asked, turns=(*asked.turns, answer))

    def asked(self, row: Row, layout: Layout) -> Dialogue:
        row = mapping_at(row)
        tools, prompts = layout.column("tools", "tools"), layout.column("prompt", "instruction")
        used = (*prompts, *layout.column("query", *QUERIES), *layout.column("history", "history"),
                *layout.column("system", "system"))
        name = first_present(row, layout.column("response", *RESPONSES))
        text = row[name] if name is not None and isinstance(row[name], str) else ""
        return Dialogue(
            (*self._context(row, layout), self._question(row, layout, prompts)), "",
            parse_tools(row.get(tools[0]) if tools else None, "/tools"), frozenset(used),
            Message("assistant", text) if text else None)

    def asked_before(self, row: Row, layout: Layout) -> Dialogue:
        return self.asked(row, layout)

    def answers(self, row: Row, layout: Layout, asked: Dialogue) -> Answers:
        row = mapping_at(row)
        name = first_present(row, layout.column("response", *RESPONSES))
        if name is not None and isinstance(row[name], list) and not has_pair(row):
            return ranked_answers(row, layout, asked, is_ordered=True)
        return given_answers(row, layout, asked)

    def _context(self, row: Mapping[str, Any], layout: Layout) -> list[Turn]:
        systems = layout.column("system", "system")
        turns = system_turn(optional_text_at(row, systems), f"/{systems[0]}" if systems else "")
        histories = layout.column("history", "history")
        name = first_present(row, histories)
        return turns + (_history(row[name], f"/{name}") if name else [])

    def _question(self, row: Mapping[str, Any], layout: Layout, prompts: tuple[str, ...]) -> Turn:
        parts = [text_at(row, prompts), optional_text_at(row, layout.column("query", *QUERIES))]
        return Turn(Message("user", "\n".join(part for part in parts if part)), f"/{first_present(row, prompts)}")


def _history(value: Any, pointer: str) -> list[Turn]:
    if value is None or value == "" or value == []:
        return []
    if not isinstance(value, list):
        raise RowProblem(pointer, kind_of(value), "a list of [question, answer] pairs")
    turns: list[Turn] = []
    for index, pair in enumerate(value):
        place = f"{pointer}/{index}"
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowProblem(place, kind_of(pair), "a pair [question, answer] of strings")
        turns += [Turn(Message("user", pair[0]), f"{place}/0"), Turn(Message("assistant", pair[1]), f"{place}/1")]
    return turns
