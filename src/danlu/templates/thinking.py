"""Reasoning in answers: where the block between <think> and </think> is written, and when it is left out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from danlu.core.records import Message
from danlu.templates.controls import THOUGHT_TAGS

if TYPE_CHECKING:
    from danlu.templates.base import EncodeOptions


@dataclass(frozen=True, slots=True)
class Thought:
    """An answer taken apart: what belongs to the generation prompt, the reasoning of the answer, its content.

    `is_cut`: the reasoning was left out.
    """

    in_prompt: str
    in_answer: str
    content: str
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a template writes reasoning.

    is_managed  False: reasoning is written in front of each answer that has it, and nothing else happens.
                True: only the final answer keeps it, and one without it has an empty block (Qwen3).
    """

    is_managed: bool = False
    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"

    @property
    def tags(self) -> tuple[str, str]:
        """Return the two tags without their white space."""
        return self.opening.strip(), self.closing.strip()

    def prompt(self, enable_thinking: bool | None) -> str:
        """Return what follows the generation prompt when a model is asked to answer."""
        return self.opening + self.closing if self.is_managed and enable_thinking is False else ""

    def split(self, message: Message, options: "EncodeOptions", *, is_final: bool) -> Thought:
        """Take an answer apart."""
        if not self.is_managed:
            block = self.opening + message.reasoning + self.closing if message.reasoning else ""
            return Thought("", block, message.content)
        reasoning, content = self._parts(message)
        if not (is_final or options.preserve_thinking):
            return Thought("", "", content, is_cut=bool(reasoning))
        if reasoning and options.enable_thinking is not False:
            return Thought("", self.opening + reasoning + self.closing, content)
        empty = self.opening + self.closing
        return Thought("", empty, content) if options.enable_thinking else Thought(empty, "", content)

    def _parts(self, message: Message) -> tuple[str, str]:
        """Return reasoning and content; a block written at the head of the content counts as reasoning."""
        inline = inline_reasoning(message, self.tags)
        return inline or ((message.reasoning or "").strip("\n"), message.content)


def inline_reasoning(message: Message, tags: tuple[str, str] = THOUGHT_TAGS) -> tuple[str, str] | None:
    """Return the reasoning that stands at the head of an answer's content, and the rest; None when there is none."""
    first, last = tags
    if message.reasoning is not None or not message.content.startswith(first) or last not in message.content:
        return None
    reasoning, content = message.content[len(first):].split(last, 1)
    return reasoning.strip("\n"), content.lstrip("\n")
