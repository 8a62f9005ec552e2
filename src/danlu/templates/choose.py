"""Which template a run uses: the named one, the tokenizer's own, or `default`."""

from typing import TYPE_CHECKING

from danlu.core.console import notice
from danlu.templates.base import TEMPLATES, ChatTemplate
from danlu.templates.own import TokenizerTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve(name: str | None, tokenizer: "PreTrainedTokenizerBase", *, needs_dialogue: bool = True,
            tool_format: str | None = None) -> ChatTemplate:
    """Return the template for this tokenizer, with another format of tools where one is chosen.

    No name: the tokenizer's own chat template, or `default`, with a notice where dialogue needs one. Raises
    ConfigError, with the closest known name, for an unknown name.
    """
    chosen = _choose(name, tokenizer, needs_dialogue=needs_dialogue)
    return chosen.with_tool_format(tool_format) if tool_format and needs_dialogue else chosen


def _choose(name: str | None, tokenizer: "PreTrainedTokenizerBase", *, needs_dialogue: bool) -> ChatTemplate:
    if name:
        return TEMPLATES[name]
    if tokenizer.chat_template:
        return TokenizerTemplate(tokenizer.chat_template)
    if needs_dialogue:
        notice('the tokenizer has no chat template and no `template` is chosen: dialogue uses "default" '
               "(Human: ... Assistant: ...)")
    return TEMPLATES["default"]
