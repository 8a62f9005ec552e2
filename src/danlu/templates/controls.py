"""Control tokens written in a message stay ordinary text: find them, mark them, and cut the text there."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from danlu.core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A Unicode noncharacter: never part of real text, so it may travel through a template and mark a place to cut.
MARK = "\ufdd0"
THOUGHT_TAGS = ("<think>", "</think>")
# Templates look these keys up, so they stay as they are even where a vocabulary has such a word as a token of its own.
_STRUCTURE = {"type", "function", "name", "arguments", "description", "parameters", "properties", "required", "id"}


def control_strings(tokenizer: "PreTrainedTokenizerBase", literal_text: str) -> frozenset[str]:
    """Return the strings that this tokenizer turns into one control token.

    These are its special tokens, and those of its other added tokens that look like `<|...|>` or that the template
    (`literal_text`) writes itself. Added tokens that are plain text (runs of spaces, HTML tags) are left alone.
    """
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        text = token.content
        written = text.strip() and text in literal_text
        if token.special or written or (text.startswith("<|") and text.endswith("|>")):
            found.add(text)
    return frozenset(text for text in found if len(text) > 1)


def control_pattern(strings: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of `strings`, the longest first; None when there are none."""
    ordered = sorted(strings, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def mark(text: str, pattern: re.Pattern[str]) -> str:
    """Put a mark behind the first character of every control string in `text`; overlapping ones too."""
    found = pattern.search(text)
    if found is None:
        return text
    parts, begin = [], 0
    while found is not None:
        cut = found.start() + 1
        parts.append(text[begin:cut])
        begin = cut
        found = pattern.search(text, cut)
    return MARK.join([*parts, text[begin:]])


class Marker:
    """Marks control-token look-alikes in messages and tools; `<think>` in an answer is the model's own and stays."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", literal_text: str) -> None:
        strings = control_strings(tokenizer, literal_text)
        self.strings = strings
        self._said = control_pattern(strings)
        self._answered = control_pattern(strings - set(THOUGHT_TAGS))

    def message(self, message: Message) -> Message:
        """Return the message with marks; the same object when there is nothing to mark."""
        pattern = self._answered if message.role == "assistant" else self._said
        if pattern is None:
            return message
        content = _mark(message.content, pattern)
        reasoning = message.reasoning and self.value(message.reasoning)
        calls = tuple(map(self.value, message.tool_calls))
        if content == message.content and reasoning == message.reasoning and calls == message.tool_calls:
            return message
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls)

    def value(self, value: Any) -> Any:
        """Return JSON-like data, a definition or a call of a tool, with marks in every text."""
        if self._said is None:
            return value
        if isinstance(value, str):
            return _mark(value, self._said)
        if isinstance(value, Mapping):
            return {key if key in _STRUCTURE else self.value(key): self.value(one) for key, one in value.items()}
        return [self.value(one) for one in value] if isinstance(value, list | tuple) else value


def _mark(text: str, pattern: re.Pattern[str]) -> str:
    return mark(text.replace(MARK, "\ufffd"), pattern)
