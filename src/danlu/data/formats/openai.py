"""OpenAI messages: `{"role": ..., "content": ...}` under `messages`, or a bare list; tool calls and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.core.records import Conversation, Message, Origin, Role
from danlu.data.formats.sharegpt import messages_at, turns_of
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
from danlu.data.turns import Turn, build_conversation, parse_tool_calls, parse_tools, system_turn

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}
WEIGHTS = ("weight", "loss_weight")


@FORMATS.register("openai")
class OpenAi(RowFormat):
    """`weight` (or `loss_weight`) of a message scales its loss, 0 switches it off."""

    def matches(self, row: Row) -> bool:
        turns = turns_of(row)
        return bool(turns) and isinstance(turns[0], Mapping) and "role" in turns[0]

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation:
        messages, pointer = messages_at(row, layout)
        fields = row if isinstance(row, Mapping) else {}
        said = read_messages(messages, pointer, layout)
        systems, tools = layout.column("system", "system"), layout.column("tools", "tools")
        if said and said[0].message.role != "system":
            said = system_turn(optional_text_at(fields, systems), f"/{systems[0]}" if systems else "") + said
        return build_conversation(
            said, origin, parse_tools(fields.get(tools[0]) if tools else None, "/tools"), pointer)


def read_messages(messages: Sequence[Any], pointer: str, layout: Layout = Layout()) -> list[Turn]:
    """Return the turns of a list of messages."""
    return [_turn(message, layout, f"{pointer}/{index}") for index, message in enumerate(messages)]


def _turn(message: Any, layout: Layout, pointer: str) -> Turn:
    message = mapping_at(message, pointer)
    tags = layout.tags or {}
    role_key, content_key = tags.get("role_tag") or "role", tags.get("content_tag") or "content"
    renamed = {name: role for tag, role in (
        ("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system"), ("observation_tag", "tool"))
        if (name := tags.get(tag))}
    name = text_at(message, (role_key,), pointer)
    role = renamed.get(name) or ROLES.get(name)
    if role is None:
        known = ", ".join(sorted({*renamed, *ROLES}))
        raise RowProblem(f"{pointer}/{role_key}", kind_of(name), f"one of {known}")
    calls = parse_tool_calls(message.get("tool_calls"), f"{pointer}/tool_calls")
    content = _content(message.get(content_key), f"{pointer}/{content_key}", may_be_absent=bool(calls))
    reasoning = optional_text_at(message, ("reasoning_content", "reasoning"), pointer) or None
    turn = Message(role, content, _weight(message, pointer), reasoning, calls)  # type: ignore[arg-type]
    return Turn(turn, f"{pointer}/{content_key}")


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
