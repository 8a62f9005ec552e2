"""A named template: one small declaration of slots, which renders dialogues and writes its own Jinja."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from danlu.core.console import notice
from danlu.core.errors import DataError
from danlu.core.records import Message
from danlu.templates.base import TEMPLATES, ChatTemplate, EncodeOptions, single_token
from danlu.templates.named_jinja import write_jinja
from danlu.templates.rendered import Dialogue, Rendered, Turn
from danlu.templates.slots import Slot, parse
from danlu.templates.thinking import Thinking

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
        slots = (self.prefix, self.system, self.user, self.observation or "", self.generation, self.assistant)
        return "\n".join([*(parse(slot).literal for slot in slots), *self.stop, *self.thinking.tags])

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
            if dialogue.tools:
                raise DataError(f'the row defines tools, and template "{self.name}" has no format for them',
                                where=str(dialogue.origin),
                                fix="leave `template` out to use the tokenizer's own chat template, or drop the tools")
            return _Writer(self, answer, special, options, dialogue).write()

        return render


class _Writer:
    """Writes one dialogue, slot by slot."""

    def __init__(
        self, template: NamedTemplate, answer: tuple[Slot, Slot], special: dict[str, str], options: EncodeOptions,
        dialogue: Dialogue,
    ) -> None:
        self.template, self.options, self.dialogue = template, options, dialogue
        self.special = special
        self.before, self.after = (slot.fill(**special) for slot in answer)
        self.text: list[str] = []
        self.length = 0
        self.turns: list[Turn] = []
        self.pending_system: str | None = None

    def put(self, text: str) -> None:
        """Append text."""
        self.text.append(text)
        self.length += len(text)

    def fill(self, slot: str, content: str = "", index: int = 0) -> str:
        """Return a slot with its fields filled in."""
        return parse(slot).fill(content=content, index=str(index + self.template.first_index), **self.special)

    def write(self) -> Rendered:
        """Return the whole dialogue."""
        template, messages = self.template, self.dialogue.messages
        self.put(self.fill(template.prefix))
        if messages and messages[0].role == "system":
            self.say_system(messages[0].content)
        elif template.default_system:
            self.say_system(template.default_system)
        start, rounds, anchor = self.length, 0, ""
        last_query = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        for i, message in enumerate(messages):
            if message.role == "system":
                if i:
                    self.refuse(f"message {i + 1} is a system message; only the first one can be")
            elif message.role == "assistant":
                self.answer(message, i, start, anchor, is_final=i > last_query)
                start, anchor = self.length, ""
            else:
                anchor = self.hear(message, rounds)
                rounds += message.role == "user"
        if self.dialogue.is_prompt:
            self.put(self.fill(template.generation) + template.thinking.prompt(self.options.enable_thinking))
        return Rendered("".join(self.text), tuple(self.turns))

    def say_system(self, content: str) -> None:
        """Write the system message, now or into the first user turn."""
        text = self.fill(self.template.system, content)
        if self.template.system_in_user:
            self.pending_system = text
        else:
            self.put(text)

    def hear(self, message: Message, index: int) -> str:
        """Write what a user or a tool says; return the template's text behind it."""
        slot = self.template.user
        if message.role == "tool" and self.template.observation is not None:
            slot = self.template.observation
        content = (self.pending_system or "") + message.content
        self.pending_system = None
        self.put(self.fill(slot, content, index))
        return parse(slot).around("content")[1].fill(**self.special, index="")

    def answer(self, message: Message, index: int, start: int, anchor: str, *, is_final: bool) -> None:
        """Write what the assistant says, and note where it begins and ends."""
        if message.tool_calls:
            self.refuse(f"message {index + 1} calls tools, for which this template has no format")
        if self.pending_system is not None:
            self.refuse("a system message needs a user message behind it")
        template = self.template
        thought = template.thinking.split(message, self.options, is_final=is_final)
        if thought.is_cut and not self.dialogue.is_prompt:
            notice(f'template "{template.name}": the reasoning of earlier answers is left out, and those answers are '
                   "trained without it; preserve_thinking keeps it, mask_history trains the last answer alone")
        generation = self.fill(template.generation) + thought.in_prompt
        self.put(generation)
        answer_start = self.length
        self.put(self.before + thought.in_answer + thought.content)
        self.put(self.after)
        stop = self.length - len(self.after) + len(self.after.rstrip("\n "))
        self.turns.append(Turn(start, answer_start, stop, self.length, anchor + generation, index))

    def refuse(self, what: str) -> None:
        """Raise the error that names the row."""
        raise DataError(f'{what} (template "{self.template.name}")', where=str(self.dialogue.origin))


def declare(names: Sequence[str] | str, **slots: object) -> NamedTemplate:
    """Register a named template; further names are aliases."""
    every = (names,) if isinstance(names, str) else tuple(names)
    template = NamedTemplate(every[0], **slots)  # type: ignore[arg-type]
    TEMPLATES.add(template, *every)
    return template
