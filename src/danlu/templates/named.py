"""A named template: one small declaration of slots, which renders dialogues and writes its own Jinja."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from danlu.core.console import notice
from danlu.templates.base import TEMPLATES, ChatTemplate, EncodeOptions, single_token
from danlu.templates.named_jinja import write_jinja
from danlu.templates.rendered import Dialogue, Rendered
from danlu.templates.slots import Slot, parse
from danlu.templates.thinking import Thinking
from danlu.templates.tool_format import TOOL_FORMATS, ToolFormat
from danlu.templates.writer import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL_LIKE = re.compile(r"<\|[^|<>\s]+\|>|<[^<>\s/][^<>\s]*>|\[[A-Za-z_/|]+\]|<｜[^｜]+｜>")


def control_like(text: str) -> list[str]:
    """Return the strings in `text` that are meant to be control tokens."""
    return sorted(set(_CONTROL_LIKE.findall(text)))


@dataclass(frozen=True)
class NamedTemplate(ChatTemplate):
    """A chat format as slots.

    prefix          once, in front of everything
    system          the system message; inside the first user turn when `system_in_user`
    user            what a user says
    observation     what a tool answers; None: as a user turn
    result          one answer of a tool inside `observation`, which answers in a row then share; None: a turn each
    tool_format     how tools are defined and called, a name of TOOL_FORMATS; empty: the template has no tools
    generation      what makes the model speak
    assistant       the answer; what follows {content} ends the turn and is trained, trailing white space apart
    default_system  system message of dialogues that have none
    stop            control tokens beside eos that end an answer; one that the tokenizer lacks gives way to eos
    thinking        how reasoning is written
    first_index     number of the first round, for {index}
    is_plain        what looks like control tokens is ordinary text in the models the format was made for
    """

    title: str
    user: str
    assistant: str = "{content}{eos}"
    generation: str = ""
    prefix: str = "{bos}"
    system: str = "{content}"
    observation: str | None = None
    result: str | None = None
    tool_format: str = ""
    default_system: str = ""
    system_in_user: bool = False
    stop: tuple[str, ...] = ()
    thinking: Thinking = Thinking()
    first_index: int = 0
    is_plain: bool = False

    @property
    def name(self) -> str:
        """Name of the template."""
        return self.title

    @property
    def tools(self) -> ToolFormat | None:
        """Format of tools, or None."""
        return TOOL_FORMATS[self.tool_format] if self.tool_format else None

    def with_tool_format(self, name: str) -> "NamedTemplate":
        """Return this template with another format of tools."""
        return replace(self, tool_format=TOOL_FORMATS[name].name)

    def answer_slot(self, tokenizer: "PreTrainedTokenizerBase") -> Slot:
        """Return the assistant slot; an end-of-turn text that is not one token here gives way to eos."""
        text = self.assistant
        for stop in self.stop:
            if stop in text and tokenizer.eos_token and single_token(tokenizer, stop) is None:
                text = text.replace(stop, "" if "{eos}" in text else "{eos}")
        return parse(text)

    def stop_strings(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        """Return the end-of-turn tokens."""
        return self.stop

    def literal_text(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the literal text of all slots."""
        slots = (self.prefix, self.system, self.user, self.observation or "", self.result or "", self.generation,
                 self.assistant)
        tags = self.tools.tags if self.tools else []
        return "\n".join([*(parse(slot).literal for slot in slots), *self.stop, *self.thinking.tags, *tags])

    def jinja(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the chat template that renders the same text."""
        return write_jinja(self, self.answer_slot(tokenizer))

    def notices(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Say which control tokens of the template this tokenizer does not have."""
        slots = () if self.is_plain else (self.prefix, self.system, self.user, self.generation, self.assistant)
        strings = control_like("\n".join(parse(slot).literal for slot in slots))
        missing = [s for s in strings if single_token(tokenizer, s) is None]
        if missing:
            ends = {*missing} & {*self.stop} and tokenizer.eos_token
            notice(f'template "{self.name}": {", ".join(missing)} are not single tokens of this tokenizer and are '
                   f"written as plain text{', and answers end with ' + str(ends) if ends else ''}; "
                   "add_special_tokens can add them")
        if tokenizer.eos_token is None and not self.stop:
            notice(f'template "{self.name}": the tokenizer has no eos token, so no end of an answer is learned')

    def renderer(self, tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions) -> Callable[[Dialogue], Rendered]:
        """Return the function that writes a dialogue, slot by slot."""
        answer = self.answer_slot(tokenizer).around("content")
        special = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or ""}

        def render(dialogue: Dialogue) -> Rendered:
            return Writer(self, answer, special, options, dialogue).write()

        return render


def declare(names: Sequence[str] | str, **slots: object) -> NamedTemplate:
    """Register a named template; further names are aliases."""
    every = (names,) if isinstance(names, str) else tuple(names)
    template = NamedTemplate(every[0], **slots)  # type: ignore[arg-type]
    TEMPLATES.add(template, *every)
    return template
