"""Control tokens written in a message stay ordinary text: find them, mark them, and cut the text there."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from danlu.core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A Unicode noncharacter: never part of real text, so it may travel through a template and mark a place to cut.
MARK = "\ufdd0"
THOUGHT_TAGS = ("<think>", "</think>")


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
    """Marks the control-token look-alikes in messages; `<think>` in an answer is the model's own and stays."""

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
        content = mark(message.content.replace(MARK, "\ufffd"), pattern)
        reasoning = message.reasoning and mark(message.reasoning, pattern)
        if content == message.content and reasoning == message.reasoning:
            return message
        return replace(message, content=content, reasoning=reasoning)
