"""From the messages of a row to turns: `{"role", "content"}`, `{"from", "value"}`, or the names that tags declare."""

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.core.records import Message, Role
from danlu.data.layout import Layout
from danlu.data.row_values import (
    Row,
    RowProblem,
    first_present,
    keys_of,
    kind_of,
    mapping_at,
    optional_text_at,
    text_at,
)
from danlu.data.turns import Dialogue, Turn, parse_json, parse_tool_calls, parse_tools, system_turn

MESSAGES = ("conversations", "conversation", "messages")
WEIGHTS = ("weight", "loss_weight")
ROLE_TAGS: dict[str, Role | str] = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "call",
    "system_tag": "system",
}
SHAREGPT_ROLES: dict[str, Role | str] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "observation": "tool", "tool": "tool", "function_response": "tool",
    "function_call": "call", "system": "system",
}
OPENAI_ROLES: dict[str, Role | str] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}


def sharegpt_turn(turn: Any, layout: Layout, pointer: str) -> Turn:
    """Return a turn of `{"from": ..., "value": ...}`; a function call is an assistant turn with the call in JSON."""
    turn = mapping_at(turn, pointer)
    role_key, content_key = _keys(layout, "from", "value")
    role = _role(turn, role_key, SHAREGPT_ROLES if layout.tags is None else _declared(layout), pointer)
    content, place, weight = text_at(turn, (content_key,), pointer), f"{pointer}/{content_key}", _weight(turn, pointer)
    if role == "call":
        return Turn(Message("assistant", "", weight, tool_calls=parse_tool_calls(content, place)), place)
    return Turn(Message(role, content, weight), place)  # type: ignore[arg-type]


def openai_turn(turn: Any, layout: Layout, pointer: str) -> Turn:
    """Return a message of `{"role": ..., "content": ...}` with its tool calls, reasoning and weight."""
    turn = mapping_at(turn, pointer)
    role_key, content_key = _keys(layout, "role", "content")
    role = _role(turn, role_key, {**OPENAI_ROLES, **_declared(layout)} if layout.tags else OPENAI_ROLES, pointer)
    calls = parse_tool_calls(turn.get("tool_calls"), f"{pointer}/tool_calls")
    calls = calls or parse_tool_calls(turn.get("function_call"), f"{pointer}/function_call")
    place = f"{pointer}/{content_key}"
    content = _content(turn.get(content_key), place, may_be_absent=bool(calls))
    if role == "call":
        role, content, calls = "assistant", "", parse_tool_calls(content, place)
    reasoning = optional_text_at(turn, ("reasoning_content", "reasoning"), pointer) or None
    return Turn(Message(role, content, _weight(turn, pointer), reasoning, calls), place)  # type: ignore[arg-type]


def any_turn(turn: Any, layout: Layout, pointer: str) -> Turn:
    """Return a turn of either layout, by its keys."""
    is_sharegpt = isinstance(turn, Mapping) and (layout.tags or {}).get("role_tag", "from") in turn
    return (sharegpt_turn if is_sharegpt else openai_turn)(turn, layout, pointer)


def read_turns(messages: Sequence[Any], pointer: str, layout: Layout = Layout()) -> list[Turn]:
    """Return the turns of a list of messages of either layout."""
    return [any_turn(message, layout, f"{pointer}/{index}") for index, message in enumerate(messages)]


def message_dialogue(row: Row, layout: Layout, read_turn: Any) -> Dialogue:
    """Return the dialogue of a row whose turns are a list; `system` and `tools` may be columns of their own."""
    messages, pointer = messages_at(row, layout)
    fields = row if isinstance(row, Mapping) else {}
    said = [read_turn(message, layout, f"{pointer}/{index}") for index, message in enumerate(messages)]
    systems, tools = layout.column("system", "system"), layout.column("tools", "tools")
    leading = system_turn(optional_text_at(fields, systems), f"/{systems[0]}" if systems else "")
    if said and said[0].message.role == "system":
        leading = []
    return Dialogue(
        (*leading, *said), pointer, parse_tools(fields.get(tools[0]) if tools else None, "/tools"),
        frozenset({pointer.lstrip("/"), *systems}))


def turns_of(row: Row) -> Sequence[Any]:
    """Return the list of turns of a row that may hold one, () otherwise."""
    if isinstance(row, Mapping):
        name = first_present(row, MESSAGES)
        row = _unquoted(row[name], f"/{name}") if name else ()
    return row if isinstance(row, list) else ()


def messages_at(row: Row, layout: Layout) -> tuple[Sequence[Any], str]:
    """Return the turns a row must have, and their JSON pointer; a bare list is its own turns."""
    if isinstance(row, list):
        return row, ""
    row = mapping_at(row)
    names = layout.column("messages", *MESSAGES)
    name = first_present(row, names)
    if name is None:
        raise RowProblem("", keys_of(row), f"a key {' or '.join(names) or 'messages'}")
    found = _unquoted(row[name], f"/{name}")
    if not isinstance(found, list):
        raise RowProblem(f"/{name}", kind_of(found), "a list of turns")
    return found, f"/{name}"


def _unquoted(value: Any, pointer: str) -> Any:
    """Return the list that a cell of a table holds as JSON text."""
    is_quoted = isinstance(value, str) and value.lstrip().startswith("[{")
    return parse_json(value, pointer, "a list of turns") if is_quoted else value


def _keys(layout: Layout, role: str, content: str) -> tuple[str, str]:
    tags = layout.tags or {}
    return tags.get("role_tag") or role, tags.get("content_tag") or content


def _declared(layout: Layout) -> dict[str, Role | str]:
    return {name: role for tag, role in ROLE_TAGS.items() if (name := (layout.tags or {}).get(tag))}


def _role(turn: Mapping[str, Any], key: str, roles: Mapping[str, Role | str], pointer: str) -> Role | str:
    name = text_at(turn, (key,), pointer)
    if name not in roles:
        raise RowProblem(f"{pointer}/{key}", kind_of(name), f"one of {', '.join(sorted(roles))}")
    return roles[name]


def _content(value: Any, pointer: str, *, may_be_absent: bool) -> str:
    if value is None and may_be_absent:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowProblem(pointer, kind_of(value), "a string or a list of text parts")
    return "".join(_text_part(part, f"{pointer}/{index}") for index, part in enumerate(value))


def _text_part(part: Any, pointer: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        raise RowProblem(pointer, kind_of(part), 'a part {"type": "text", "text": ...}')
    return text_at(part, ("text", "value"), pointer)


def _weight(message: Mapping[str, Any], pointer: str) -> float | None:
    for name in WEIGHTS:
        value = message.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise RowProblem(f"{pointer}/{name}", kind_of(value), "a number of at least 0")
        return float(value)
    return None
