"""Tools in the tokenizer's own chat template: nothing of them may be lost or escaped without a word."""

from collections.abc import Callable, Sequence
from typing import Any

from danlu.core.errors import DataError
from danlu.core.records import Message
from danlu.templates.controls import MARK
from danlu.templates.rendered import Dialogue, Turn
from danlu.templates.tool_format import TOOL_FORMATS, ToolFormat, inner
from danlu.templates.writer import with_tools

_CALL = {"type": "function", "function": {"name": "call_q7", "arguments": {"question": "Cq7 argument"}}}
_TOOL = {"type": "function", "function": {
    "name": "call_q7", "description": "Dq7", "parameters": {
        "type": "object", "properties": {"question": {"type": "string", "description": "Eq7"}},
        "required": ["question"]}}}
_ESCAPED = MARK.encode("unicode_escape").decode()


def format_of(render: Callable[[tuple[Message, ...], tuple[dict[str, Any], ...]], str]) -> ToolFormat | None:
    """Return the registered format that reads back a call which `render` wrote, or None."""
    asked, called = Message("user", "Uq7 question"), Message("assistant", "", tool_calls=(_CALL,))
    try:
        text = render((asked, called), (_TOOL,))
    except DataError:
        return None
    formats = (TOOL_FORMATS[name] for name in TOOL_FORMATS)
    return next((one for one in formats if _reads(one, text)), None)


def _reads(style: ToolFormat, text: str) -> bool:
    """Return whether the call is read from some beginning of what is written up to some end."""
    at = text.rfind(_CALL["function"]["arguments"]["question"])  # type: ignore[index]
    tail = text[at:] if at >= 0 else ""
    ends = [at + i + 1 for i, letter in enumerate(tail) if letter in "}]>"]
    starts = [match.start() for match in style.places(text[:max(at, 0)])]
    return any((found := style.parse_calls(text[start:end])) is not None and found == ("", (_CALL,))
               for start in starts for end in ends)


def check_tools(text: str, dialogue: Dialogue) -> None:
    """Raise DataError when definitions are left out, or written so that control tokens in them cannot be told apart."""
    missing = [name for name in map(_name, dialogue.tools) if name not in text]
    if missing:
        raise DataError(f"the row defines tools ({', '.join(missing)}), and the tokenizer's own chat template leaves "
                        "them out", where=str(dialogue.origin),
                        fix=f"choose a named template that writes tools: {', '.join(with_tools())}")
    if _ESCAPED in text:
        raise DataError("text that looks like a control token stands in a tool's definition, call or answer, and the "
                        "tokenizer's own chat template writes it in an escaped form where it cannot be told apart",
                        where=str(dialogue.origin), fix="take that text out, or choose a named template that writes "
                        f"tools: {', '.join(with_tools())}")


def check_calls(text: str, turns: Sequence[Turn], dialogue: Dialogue) -> None:
    """Raise DataError when an answer's calls are left out."""
    if dialogue.is_prompt:
        return
    for turn in turns:
        written = text[turn.answer_start:turn.stop]
        missing = [name for name in map(_name, dialogue.messages[turn.message].tool_calls) if name not in written]
        if missing:
            raise DataError(f"message {turn.message + 1} calls tools ({', '.join(missing)}), and the tokenizer's own "
                            "chat template leaves the call out", where=str(dialogue.origin),
                            fix=f"choose a named template that writes tools: {', '.join(with_tools())}")


def _name(tool: dict[str, Any]) -> str:
    return str(inner(tool).get("name", ""))
