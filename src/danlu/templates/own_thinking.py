"""Reasoning in the tokenizer's own chat template: handed over as the template reads it, and missed where it is lost."""

from collections.abc import Sequence
from dataclasses import replace

from danlu.core.console import notice
from danlu.core.errors import ConfigError
from danlu.core.records import Message
from danlu.templates.base import EncodeOptions
from danlu.templates.controls import THOUGHT_TAGS
from danlu.templates.rendered import Dialogue, Turn
from danlu.templates.thinking import Thinking, inline_reasoning


def with_reasoning(messages: tuple[Message, ...], options: EncodeOptions, *, reads_field: bool) -> tuple[Message, ...]:
    """Return messages whose reasoning stands where the template looks for it; without any when it is switched off."""
    return tuple(_moved(message, options, reads_field) if message.role == "assistant" else message
                 for message in messages)


def _moved(message: Message, options: EncodeOptions, reads_field: bool) -> Message:
    inline = inline_reasoning(message)
    reasoning, content = inline or ((message.reasoning or "").strip("\n"), message.content)
    if not reasoning and inline is None:
        return message
    if options.enable_thinking is False:
        return replace(message, content=content, reasoning=None)
    if reads_field:
        return replace(message, content=content, reasoning=reasoning)
    if inline is not None:
        return message
    block = Thinking()
    return replace(message, content=block.opening + reasoning + block.closing + content, reasoning=None)


def is_empty_block(text: str) -> bool:
    """Return whether a text is a block of reasoning with nothing in it."""
    first, last = THOUGHT_TAGS
    text = text.strip()
    return text.startswith(first) and text.endswith(last) and not text[len(first):-len(last)].strip()


def check_reasoning(text: str, turns: Sequence[Turn], dialogue: Dialogue, options: EncodeOptions) -> None:
    """Say which reasoning the template leaves out; refuse a run that asks to keep what the template drops."""
    if dialogue.is_prompt:
        return
    messages = dialogue.messages
    last_query = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    for turn in turns:
        inline = inline_reasoning(messages[turn.message])
        reasoning = (inline[0] if inline else messages[turn.message].reasoning or "").strip()
        if not reasoning or reasoning in text[turn.answer_start:turn.stop]:
            continue
        if turn.message > last_query:
            notice("the tokenizer's own chat template leaves the reasoning out of last answers too, so no reasoning is "
                   f"trained ({dialogue.origin} is the first row); a named template (qwen3, deepseekr1) writes it")
        elif options.preserve_thinking:
            raise ConfigError("the tokenizer's own chat template drops the reasoning of earlier answers whatever it is "
                              f"told ({dialogue.origin})", where="preserve_thinking",
                              fix="take the key out, or choose a named `template` (qwen3, deepseekr1)")
        else:
            notice("the tokenizer's own chat template: the reasoning of earlier answers is left out, and those "
                   "answers are trained without it; mask_history trains the last answer alone")
