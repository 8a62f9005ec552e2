"""The tokenizer's own chat template, rendered in transformers' sandbox; its answers are found in the text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from danlu.core.console import notice
from danlu.core.errors import DataError, UserError
from danlu.core.records import Message
from danlu.templates.base import ChatTemplate, EncodeOptions
from danlu.templates.controls import control_pattern, control_strings
from danlu.templates.own_thinking import check_reasoning, is_empty_block, with_reasoning
from danlu.templates.own_tools import check_calls, check_tools, format_of, trial_call
from danlu.templates.own_turns import Shape, find_turns
from danlu.templates.rendered import Dialogue, Rendered, Turn
from danlu.templates.tool_format import ToolFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _ANSWERED, _ASKED_AGAIN, _REASONED = "Uq7 question", "Aq7 answer", "Vq7 question", "Rq7 reasons"
_CHOOSE = "choose a named `template` (default, chatml, ...), or mend the tokenizer's chat_template"


def _thinking_variables(options: EncodeOptions) -> dict[str, Any]:
    """Translate the options into template variables; what is not chosen is left to the template."""
    variables: dict[str, Any] = {}
    if options.enable_thinking is not None:
        variables["enable_thinking"] = options.enable_thinking
    if options.preserve_thinking:
        variables |= {"preserve_thinking": True, "clear_thinking": False}
    return variables


class TokenizerTemplate(ChatTemplate):
    """The Jinja template that came with the tokenizer."""

    def __init__(self, source: str | dict[str, str]) -> None:
        self.source = source

    @property
    def name(self) -> str:
        """Name for messages."""
        return "the tokenizer's own"

    def jinja(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the template as it came."""
        return self._text(())

    def prepare_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Keep the template (all of its variants), and set a pad token where there is none."""
        super().prepare_tokenizer(tokenizer)
        tokenizer.chat_template = self.source

    def _text(self, tools: tuple[dict[str, object], ...]) -> str:
        if isinstance(self.source, str):
            return self.source
        if tools and "tool_use" in self.source:
            return self.source["tool_use"]
        if "default" not in self.source:
            raise UserError(f"the tokenizer has several chat templates and none is called default: "
                            f"{', '.join(self.source)}", fix=_CHOOSE)
        return self.source["default"]

    def stop_strings(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        """Return the control token that ends an answer in this template."""
        end = self._probe(tokenizer, EncodeOptions(enable_thinking=None)).end_of_turn
        return (end,) if end else ()

    def renderer(self, tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions) -> Callable[[Dialogue], Rendered]:
        """Return the function that renders a dialogue and finds its answers."""
        return partial(self._write, tokenizer, options, self._probe(tokenizer, options))

    def literal_text(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return every variant of the template."""
        return self.source if isinstance(self.source, str) else "\n".join(self.source.values())

    def tools_of(self, tokenizer: "PreTrainedTokenizerBase") -> ToolFormat | None:
        """Return the format that reads back the call this template writes, if one does."""
        options, dialogue = EncodeOptions(enable_thinking=None), trial_call()
        shape = self._probe(tokenizer, options)
        try:
            written = self._write(tokenizer, options, shape, dialogue)
        except DataError:
            return None
        turn = written.turns[0]
        return format_of(written.text[turn.answer_start:turn.stop].strip().removesuffix(shape.end_of_turn))

    def _write(
        self, tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions, shape: Shape, dialogue: Dialogue,
    ) -> Rendered:
        where = str(dialogue.origin)
        dialogue = replace(dialogue, messages=with_reasoning(
            dialogue.messages, options, reads_field=shape.reads_reasoning))
        text = self._render(dialogue.messages, tokenizer, options, dialogue.is_prompt, dialogue.tools, where)

        def prompt_of(count: int) -> str | None:
            try:
                return self._render(dialogue.messages[:count], tokenizer, options, True, dialogue.tools, where)
            except DataError:
                return None

        check_tools(text, dialogue)
        turns = find_turns(text, dialogue.messages, shape, prompt_of)
        if turns is None and dialogue.is_prompt:
            return Rendered(text)
        if turns is None:
            raise DataError("the answers of this row cannot be found in what the tokenizer's own chat template writes",
                            where=where, fix=_CHOOSE)
        if dialogue.messages[0].role == "system" and dialogue.messages[0].content.strip() not in text:
            notice("the tokenizer's own chat template leaves the system message out of some dialogues "
                   f"({where} is the first); a named `template` writes it in all")
        check_calls(text, turns, dialogue)
        check_reasoning(text, turns, dialogue, options)
        closing = shape.end_of_turn or tokenizer.eos_token
        if turns and closing and not (dialogue.is_prompt or shape.is_closed):
            return self._closed(text, dialogue, turns, closing)
        return Rendered(text, turns)

    def _closed(self, text: str, dialogue: Dialogue, turns: tuple[Turn, ...], closing: str) -> Rendered:
        """Put an end-of-turn token behind a final answer that the template leaves open, so that its end is learned."""
        if dialogue.messages[-1].role != "assistant":
            return Rendered(text, turns)
        notice("the tokenizer's own chat template writes no end-of-turn token behind the last answer; "
               f"danlu adds {closing} there, so that the model learns to stop")
        text = text[:turns[-1].stop] + closing
        return Rendered(text, (*turns[:-1], replace(turns[-1], stop=len(text), end=len(text))))

    def _probe(self, tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions) -> Shape:
        """Learn the template's habits by rendering a dialogue of two rounds."""
        asked, answered = Message("user", _ASKED), Message("assistant", _ANSWERED)
        again = Message("user", _ASKED_AGAIN)

        def render(*messages: Message, prompt: bool = False) -> str:
            return self._render(messages, tokenizer, options, prompt, (), "a trial dialogue")

        prompt, plain, whole = render(asked, prompt=True), render(asked), render(asked, answered)
        if _ASKED not in prompt or _ANSWERED not in whole:
            raise UserError("the tokenizer's own chat template does not write the messages it is given", fix=_CHOOSE)
        generation = prompt[len(plain):] if prompt.startswith(plain) else ""
        behind_user = prompt[prompt.rfind(_ASKED) + len(_ASKED):]
        at = whole.rfind(_ANSWERED)
        lead = whole[len(prompt):at] if whole.startswith(prompt) else ""
        trail = whole[at + len(_ANSWERED):]
        longer = render(asked, answered, again)
        second = longer.rfind(_ASKED_AGAIN)
        between = longer[longer.rfind(_ANSWERED, 0, second) + len(_ANSWERED):second]
        strings = control_strings(tokenizer, self._text(())) - {tokenizer.bos_token}
        reasoned = self._render((asked, replace(answered, reasoning=_REASONED)), tokenizer, options, False, (),
                                "a trial dialogue")
        shape = Shape(generation or behind_user, lead, trail, between.removeprefix(trail), control_pattern(strings),
                      reads_reasoning=_REASONED in reasoned)
        block = shape.generation[len(shape.short_generation):] + lead
        shape = replace(shape, is_lead_masked=options.enable_thinking is None and is_empty_block(block))
        last, earlier = shape.first_control(trail), shape.first_control(between)
        if last != earlier and last in shape.generation:
            return replace(shape, end_of_turn=earlier, opener=last)
        return replace(shape, end_of_turn=last or earlier, is_closed=bool(last))

    def _render(
        self, messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase", options: EncodeOptions,
        is_prompt: bool, tools: tuple[dict[str, object], ...], where: str,
    ) -> str:
        import jinja2

        context = {
            **tokenizer.special_tokens_map, **_thinking_variables(options), "messages": as_dicts(messages),
            "tools": list(tools) or None, "add_generation_prompt": is_prompt}
        try:
            return self.render_context(context)
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the tokenizer's own chat template refuses this dialogue: {error}", where=where,
                            fix="change the row's roles, or " + _CHOOSE) from error

    def render_context(self, context: dict[str, Any]) -> str:
        """Render in transformers' sandbox: `messages`, `tools`, `add_generation_prompt` and other variables."""
        # Imported here: transformers takes seconds, and naming the templates needs none of it.
        from transformers.utils.chat_template_utils import render_jinja_template

        variables = dict(context)
        messages, tools = variables.pop("messages"), variables.pop("tools", None)
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=self._text(tuple(tools or ())), **variables)
        return str(rendered[0])


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them; calls and the answers to them share an id, counted from 1.

    Some templates refuse calls without an id, or with one that is not nine letters and digits.
    """
    items, count = [as_dict(message) for message in messages], 0
    waiting: list[str] = []
    for item in items:
        calls = item.get("tool_calls", [])
        for call in calls:
            count += 1
            call["id"] = f"call{count:05d}"
        waiting = [call["id"] for call in calls] or waiting
        if item["role"] == "tool" and waiting:
            item["tool_call_id"] = waiting.pop(0)
    return items


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as chat templates expect it."""
    item: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        item["reasoning_content"] = message.reasoning
    if message.tool_calls:
        item["tool_calls"] = [dict(call) for call in message.tool_calls]
    return item


