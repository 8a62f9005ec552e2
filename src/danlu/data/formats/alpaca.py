"""Alpaca rows: instruction, input, output, and optionally history (pairs), system, tools."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Message, Origin, Text
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
from danlu.data.turns import Turn, build_conversation, parse_tools, system_turn

RESPONSES = ("output", "response")
QUERIES = ("input", "context")


@FORMATS.register("alpaca")
class Alpaca(RowFormat):
    """The user turn is the instruction and, a line below, the input."""

    def matches(self, row: Row) -> bool:
        return isinstance(row, Mapping) and "instruction" in row and first_present(row, RESPONSES) is not None

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation | Text:
        row = mapping_at(row)
        prompts = layout.column("prompt", "instruction")
        responses = layout.column("response", *RESPONSES)
        if not responses:
            return Text(text_at(row, prompts), origin)
        turns = [*self._context(row, layout), self._question(row, layout, prompts)]
        name = first_present(row, responses)
        if name is not None and isinstance(row[name], list):
            found = f"a list of {len(row[name])} answers"
            raise RowProblem(f"/{name}", found, "one string (a list is preference data)")
        turns.append(Turn(Message("assistant", text_at(row, responses)), f"/{name}"))
        tools = layout.column("tools", "tools")
        return build_conversation(turns, origin, parse_tools(row.get(tools[0]) if tools else None, "/tools"))

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
