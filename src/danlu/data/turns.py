"""From turns to a checked dialogue: alternation, roles, tools, calls. Shared by every format that holds dialogue."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from danlu.core.records import Conversation, Message, Origin
from danlu.data.row_values import RowProblem, kind_of

FOLLOWERS = {
    "start": ("user",),
    "user": ("assistant",),
    "tool": ("assistant", "tool"),
    "assistant": ("user", "tool"),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and the JSON pointer of the value it was read from."""

    message: Message
    pointer: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The turns of a row, the tools it offers, the columns they were read from.

    `pointer` is the list of turns, `answer` a final answer that was taken off.
    """

    turns: tuple[Turn, ...]
    pointer: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    columns: frozenset[str] = frozenset()
    answer: Message | None = None


def without_answer(said: Dialogue) -> Dialogue:
    """Return the dialogue without its final answer, if it has one."""
    if not said.turns or said.turns[-1].message.role != "assistant":
        return said
    return replace(said, turns=said.turns[:-1], answer=said.turns[-1].message)


def check_question(asked: Dialogue) -> tuple[Message, ...]:
    """Return the messages of a prompt: like a dialogue, but it ends on a user turn or a tool's result."""
    turns = _without_empty_system(asked.turns)
    check_alternation(turns, asked.pointer, ends=("user", "tool"))
    return tuple(turn.message for turn in turns)


def build_conversation(turns: Sequence[Turn], origin: Origin, tools: tuple[dict[str, Any], ...] = (),
                       pointer: str = "") -> Conversation:
    """Return the dialogue after checking it; an empty system turn is left out.

    Errors: RowProblem at the first turn that breaks `[system] user assistant (user|tool assistant)*`.
    """
    turns = _without_empty_system(turns)
    check_alternation(turns, pointer)
    return Conversation(tuple(turn.message for turn in turns), origin, tools)


def _without_empty_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    is_empty = bool(turns) and turns[0].message.role == "system" and not turns[0].message.content.strip()
    return turns[1:] if is_empty else turns


def check_alternation(turns: Sequence[Turn], pointer: str = "", ends: tuple[str, ...] = ("assistant",)) -> None:
    """Raise RowProblem at the first turn out of place, or without words, or when the last is none of `ends`."""
    body = turns[1:] if turns and turns[0].message.role == "system" else turns
    if not body:
        wanted = "at least one user and one assistant turn" if "assistant" in ends else "at least one user turn"
        raise RowProblem(pointer, "no turns", wanted)
    previous = "start"
    for turn in body:
        role = turn.message.role
        if role not in FOLLOWERS[previous]:
            after = "as the first turn" if previous == "start" else f"after {_turn(previous)}"
            raise RowProblem(turn.pointer, f"{_turn(role)} {after}", " or ".join(FOLLOWERS[previous]))
        if role != "tool" and not turn.message.content.strip() and not turn.message.tool_calls:
            raise RowProblem(turn.pointer, f"an empty {role} turn", "some text")
        previous = role
    if previous not in ends:
        wanted = " or ".join(_turn(role) for role in ends)
        raise RowProblem(body[-1].pointer, f"a dialogue that ends on {_turn(previous)}", f"{wanted} at the end")


def _turn(role: str) -> str:
    return f"an {role} turn" if role == "assistant" else f"a {role} turn"


def system_turn(text: str, pointer: str) -> list[Turn]:
    """Return a leading system turn, or nothing when there is no text."""
    return [Turn(Message("system", text), pointer)] if text.strip() else []


def parse_tools(value: Any, pointer: str) -> tuple[dict[str, Any], ...]:
    """Return the tool definitions of a row, given as a list or as JSON text."""
    if isinstance(value, str):
        value = parse_json(value, pointer, "a JSON list of tool definitions") if value.strip() else None
    if not value:
        return ()
    tools = value if isinstance(value, list) else [value]
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowProblem(f"{pointer}/{index}", kind_of(tool), "an object that defines a tool")
    return tuple(dict(tool) for tool in tools)


def parse_tool_calls(value: Any, pointer: str) -> tuple[dict[str, Any], ...]:
    """Return calls as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`.

    This is how chat templates read them. Accepts JSON text, one call or a list of them, with and without the nesting.
    """
    if isinstance(value, str):
        value = parse_json(value, pointer, 'a JSON call {"name": ..., "arguments": ...}')
    if value is None:
        return ()
    calls = value if isinstance(value, list) else [value]
    return tuple(_one_call(call, f"{pointer}/{index}") for index, call in enumerate(calls))


def _one_call(call: Any, pointer: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowProblem(pointer, kind_of(call), 'an object with "name" and "arguments"')
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{pointer}/arguments", "JSON") if arguments.strip() else {}
    return {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def parse_json(text: str, pointer: str, expected: str) -> Any:
    """Return the value of JSON text inside a row."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowProblem(pointer, f"{kind_of(text)}: {error.msg} at character {error.pos + 1}", expected) from None
