"""Tools in the tokenizer's own chat template: nothing of them may be lost or escaped without a word."""

import json
from collections.abc import Sequence
from typing import Any

from danlu.core.errors import DataError
from danlu.core.records import Message, Origin
from danlu.templates.controls import MARK, THOUGHT_TAGS
from danlu.templates.rendered import Dialogue, Turn
from danlu.templates.tool_format import TOOL_FORMATS, ToolFormat, inner
from danlu.templates.writer import with_tools

_CALL: dict[str, Any] = {"type": "function", "function": {"name": "call_q7", "arguments": {"question": "Cq7 argument"}}}
_TOOL: dict[str, Any] = {"type": "function", "function": {
    "name": "call_q7", "description": "Dq7", "parameters": {
        "type": "object", "properties": {"question": {"type": "string", "description": "Eq7"}},
        "required": ["question"]}}}
_ESCAPES = (MARK.encode("unicode_escape").decode(), "&#34;", "&quot;")


def trial_call() -> Dialogue:
    """Return a dialogue in which a tool is called."""
    said = (Message("user", "Uq7 question"), Message("assistant", "", tool_calls=(_CALL,)), Message("tool", "Tq7"),
            Message("assistant", "Aq7 answer"))
    return Dialogue(said, Origin("a trial dialogue", 1), (_TOOL,))


def format_of(answer: str) -> ToolFormat | None:
    """Return the registered format that reads back the trial call from what a template wrote for it, or None."""
    written = answer.rsplit(THOUGHT_TAGS[1], 1)[-1].strip()
    formats = (TOOL_FORMATS[name] for name in TOOL_FORMATS)
    return next((one for one in formats if one.parse_calls(written) == ("", (_CALL,))), None)


def check_tools(text: str, dialogue: Dialogue) -> None:
    """Raise DataError when definitions are left out, or written so that control tokens in them cannot be told apart."""
    missing = [name for name in map(_name, dialogue.tools) if name not in text]
    if missing:
        raise DataError(f"the row defines tools ({', '.join(missing)}), and the tokenizer's own chat template leaves "
                        "them out", where=str(dialogue.origin),
                        fix=_choose())
    escape = next((one for one in _ESCAPES if one in text and one not in _said(dialogue)), None)
    if escape == _ESCAPES[0]:
        raise DataError("text that looks like a control token stands in a tool's definition, call or answer, and the "
                        "tokenizer's own chat template writes it in an escaped form where it cannot be told apart",
                        where=str(dialogue.origin), fix=f"take that text out, or {_choose()}")
    if escape:
        raise DataError(f"the tokenizer's own chat template writes {escape} for a quotation mark of a tool's "
                        "definition or call", where=str(dialogue.origin), fix=_choose())


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
                            fix=_choose())


def _said(dialogue: Dialogue) -> str:
    """Return the texts of a dialogue as they are."""
    calls = [message.tool_calls for message in dialogue.messages]
    return "\n".join([*(message.content for message in dialogue.messages),
                      json.dumps([calls, dialogue.tools], ensure_ascii=False)])


def _choose() -> str:
    return f"choose a named template that writes tools: {', '.join(with_tools())}"


def _name(tool: dict[str, Any]) -> str:
    return str(inner(tool).get("name", ""))
