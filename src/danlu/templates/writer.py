"""Writes one dialogue in a named template, slot by slot."""

import json
from typing import TYPE_CHECKING, Any

from danlu.core.console import notice
from danlu.core.errors import DataError
from danlu.core.records import Message
from danlu.templates.base import TEMPLATES, EncodeOptions
from danlu.templates.rendered import Dialogue, Rendered, Turn
from danlu.templates.slots import Slot, parse
from danlu.templates.tool_format import ToolFormat, inner

if TYPE_CHECKING:
    from danlu.templates.named import NamedTemplate

BEHIND_SYSTEM = "\n\n"


class Writer:
    """Writes one dialogue; `special` holds the texts of bos and eos, `answer` what stands around an answer."""

    def __init__(
        self, template: "NamedTemplate", answer: tuple[Slot, Slot], special: dict[str, str], options: EncodeOptions,
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
        self.begin()
        start, rounds, anchor = self.length, 0, ""
        last_query = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        for i, message in enumerate(messages):
            if message.role == "system":
                if i:
                    self.refuse(f"message {i + 1} is a system message; only the first one can be")
            elif message.role == "assistant":
                self.answer(message, i, start, anchor, is_final=i > last_query)
                start, anchor = self.length, ""
            elif message.role == "tool":
                anchor = self.hear_tool(message, i, rounds)
            else:
                anchor = self.hear(template.user, message.content, rounds)
                rounds += 1
        if self.dialogue.is_prompt:
            self.put(self.fill(template.generation) + template.thinking.prompt(self.options.enable_thinking))
        return Rendered("".join(self.text), tuple(self.turns))

    def begin(self) -> None:
        """Write the system message and the definitions of tools."""
        messages, tools = self.dialogue.messages, self.dialogue.tools
        system: str | None = self.template.default_system or None
        if messages and messages[0].role == "system":
            system = messages[0].content
        if tools:
            style = self.tool_format("the row defines tools")
            for index, tool in enumerate(tools):
                if not isinstance(inner(tool), dict) or not isinstance(inner(tool).get("name"), str):
                    self.refuse(f"tool {index + 1} has no name")
            text = style.render_tools(tools)
            if style.place == "front":
                self.put(text)
            else:
                system = system + BEHIND_SYSTEM + text if system else text
        if system is not None:
            self.say_system(system)

    def say_system(self, content: str) -> None:
        """Write the system message, now or into the first user turn."""
        text = self.fill(self.template.system, content)
        if self.template.system_in_user:
            self.pending_system = text
        else:
            self.put(text)

    def hear(self, slot: str, content: str, index: int) -> str:
        """Write what a user or a tool says; return the template's text behind it."""
        self.put(self.fill(slot, (self.pending_system or "") + content, index))
        self.pending_system = None
        return parse(slot).around("content")[1].fill(**self.special, index="")

    def hear_tool(self, message: Message, at: int, index: int) -> str:
        """Write what a tool answers; where `result` is a slot, answers in a row share one turn."""
        template, messages = self.template, self.dialogue.messages
        slot = template.user if template.observation is None else template.observation
        if template.result is None:
            return self.hear(slot, message.content, index)
        before, after = (part.fill(**self.special, index="") for part in parse(slot).around("content"))
        is_first = at == 0 or messages[at - 1].role != "tool"
        self.put(before + (self.pending_system or "") if is_first else "\n")
        self.pending_system = None
        self.put(self.fill(template.result, message.content))
        if at + 1 == len(messages) or messages[at + 1].role != "tool":
            self.put(after)
        return after

    def answer(self, message: Message, index: int, start: int, anchor: str, *, is_final: bool) -> None:
        """Write what the assistant says and calls, and note where it begins and ends."""
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
        before, said = self.before, thought.in_answer + thought.content
        if message.tool_calls:
            style = self.tool_format(f"message {index + 1} calls tools")
            self.check_calls(message, index)
            before = "" if style.is_bare and not said else before
            said = thought.in_answer + style.add_calls(thought.content, message.tool_calls)
        self.put(before + said)
        self.put(self.after)
        stop = self.length - len(self.after) + len(self.after.rstrip("\n "))
        self.turns.append(Turn(start, answer_start, stop, self.length, anchor + generation, index))

    def tool_format(self, why: str) -> ToolFormat:
        """Return the format of tools; raise the error that names the row where there is none."""
        style = self.template.tools
        if style is None:
            raise DataError(f'{why}, and template "{self.template.name}" has no format for them',
                            where=str(self.dialogue.origin), fix="choose a template that writes tools "
                            f"({', '.join(with_tools())}), or set tool_format (default, qwen, ...)")
        return style

    def check_calls(self, message: Message, index: int) -> None:
        """Refuse calls that no format can write, so that nobody trains on a broken one."""
        for call in message.tool_calls:
            function = inner(call)
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                self.refuse(f"message {index + 1} calls a tool without a name")
            if not _is_object(function.get("arguments")):
                self.refuse(f"message {index + 1} calls {function['name']} with arguments that are no JSON object")

    def refuse(self, what: str) -> None:
        """Raise the error that names the row."""
        raise DataError(f'{what} (template "{self.template.name}")', where=str(self.dialogue.origin))


def with_tools() -> list[str]:
    """Return the names of the templates that write tools."""
    return [name for name in TEMPLATES if TEMPLATES[name].tools]


def _is_object(arguments: Any) -> bool:
    if not isinstance(arguments, str):
        return isinstance(arguments, dict)
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False
