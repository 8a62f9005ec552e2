"""ShareGPT rows: a list of turns `{"from": ..., "value": ...}`, with tools, calls and observations."""

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.core.records import Conversation, Message, Origin, Role
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
from danlu.data.turns import Turn, build_conversation, parse_tool_calls, parse_tools, system_turn

MESSAGES = ("conversations", "conversation", "messages")
ROLE_TAGS: dict[str, Role | str] = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "call",
    "system_tag": "system",
}
USUAL: dict[str, Role | str] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "observation": "tool", "tool": "tool", "function_call": "call",
    "system": "system",
}


@FORMATS.register("sharegpt")
class ShareGpt(RowFormat):
    """Turns alternate: user or observation, then assistant or function call; a system turn may lead."""

    def matches(self, row: Row) -> bool:
        turns = turns_of(row)
        return bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation:
        turns, pointer = messages_at(row, layout)
        fields = row if isinstance(row, Mapping) else {}
        systems, tools = layout.column("system", "system"), layout.column("tools", "tools")
        read = system_turn(optional_text_at(fields, systems), f"/{systems[0]}" if systems else "")
        said = [self._turn(turn, layout, f"{pointer}/{index}") for index, turn in enumerate(turns)]
        if read and said and said[0].message.role == "system":
            read = []
        return build_conversation(
            [*read, *said], origin, parse_tools(fields.get(tools[0]) if tools else None, "/tools"), pointer)

    def _turn(self, turn: Any, layout: Layout, pointer: str) -> Turn:
        tags = layout.tags or {"role_tag": "from", "content_tag": "value"}
        roles = USUAL if layout.tags is None else {
            name: role for tag, role in ROLE_TAGS.items() if (name := layout.tags.get(tag))}
        role_key, content_key = tags.get("role_tag") or "from", tags.get("content_tag") or "value"
        turn = mapping_at(turn, pointer)
        name = text_at(turn, (role_key,), pointer)
        if name not in roles:
            raise RowProblem(f"{pointer}/{role_key}", kind_of(name), f"one of {', '.join(sorted(roles))}")
        return make_turn(roles[name], text_at(turn, (content_key,), pointer), f"{pointer}/{content_key}")


def make_turn(role: Role | str, content: str, pointer: str) -> Turn:
    """Return the turn; a function call is an assistant turn whose text is the call in JSON."""
    if role == "call":
        return Turn(Message("assistant", "", tool_calls=parse_tool_calls(content, pointer)), pointer)
    return Turn(Message(role, content), pointer)  # type: ignore[arg-type]


def turns_of(row: Row) -> Sequence[Any]:
    """Return the list of turns of a row that may hold one, () otherwise."""
    if isinstance(row, Mapping):
        name = first_present(row, MESSAGES)
        row = row[name] if name else ()
    return row if isinstance(row, list) else ()


def messages_at(row: Row, layout: Layout) -> tuple[Sequence[Any], str]:
    """Return the turns a row must have, and their JSON pointer; a bare list is its own turns."""
    if isinstance(row, list):
        return row, ""
    row = mapping_at(row)
    names = layout.column("messages", *MESSAGES)
    name = first_present(row, names)
    if name is None:
        raise RowProblem("", f"the keys {', '.join(row) or '(none)'}", f"a key {' or '.join(names) or 'messages'}")
    if not isinstance(row[name], list):
        raise RowProblem(f"/{name}", kind_of(row[name]), "a list of turns")
    return row[name], f"/{name}"
