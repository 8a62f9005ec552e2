"""Finds the answers in the text that somebody else's chat template wrote."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from danlu.core.records import Message
from danlu.templates.controls import THOUGHT_TAGS
from danlu.templates.rendered import Turn


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template writes around messages.

    generation   what makes the model speak
    lead         what the template puts between `generation` and an answer (a space, an empty reasoning block)
    trail        what follows a final answer
    header       what stands in front of a later user message
    controls     pattern of control tokens
    is_closed    whether `trail` holds an end-of-turn token
    end_of_turn  that token, or the one behind earlier answers
    opener       a control token in `trail` that asks for the next answer and ends none
    reads_reasoning  whether the template writes a message's field for reasoning
    is_lead_masked   `lead` is an empty block of reasoning that carries no loss
    """

    generation: str
    lead: str
    trail: str
    header: str
    controls: re.Pattern[str] | None
    is_closed: bool = False
    end_of_turn: str = ""
    opener: str = ""
    reads_reasoning: bool = False
    is_lead_masked: bool = False

    def first_control(self, text: str) -> str:
        """Return the first control token in `text`, or nothing."""
        found = self.controls.search(text) if self.controls else None
        return found.group() if found else ""

    @property
    def short_generation(self) -> str:
        """Return the generation prompt without the reasoning tag that some templates open in it."""
        return self.generation.split(THOUGHT_TAGS[0], 1)[0]


def find_turns(
    text: str, messages: tuple[Message, ...], shape: Shape, prompt_of: Callable[[int], str | None],
) -> tuple[Turn, ...] | None:
    """Return the turns of a rendered dialogue, or None when an answer is not found.

    Messages are looked for in order. `prompt_of(i)` renders the messages before answer i with the generation prompt;
    it decides where the search by the template's habits finds nothing.
    """
    turns: list[Turn] = []
    position = behind = 0
    start = _first_start(text, messages, shape)
    for index, message in enumerate(messages):
        if message.role in ("user", "tool"):
            said = message.content.strip()
            at = text.find(said, position) if said else -1
            position = position if at < 0 else at + len(said)
        if message.role != "assistant":
            continue
        found = _find_answer(text, message, shape, position) or _find_answer(text, message, shape, behind)
        if found is None and index and messages[index - 1].role == "tool":
            found = _behind_control(text, message, shape, position)
        found = found or _by_prompt(text, message, prompt_of(index))
        if found is None:
            return None
        answer, content_end = found
        stop = _find_stop(text, content_end, shape, has_calls=bool(message.tool_calls))
        end = max(content_end + len(shape.trail) if text.startswith(shape.trail, content_end) else stop, stop)
        turns.append(Turn(start, answer, stop, end, text[max(start, answer - len(shape.generation)):answer], index))
        start = position = behind = end
    return tuple(turns)


def _first_start(text: str, messages: tuple[Message, ...], shape: Shape) -> int:
    """Return where the first round begins: at the header of the first user message, or at the very beginning."""
    said = next((m.content.strip() for m in messages if m.role == "user"), "")
    at = text.find(shape.header + said) if said and shape.header else -1
    return max(at, 0)


def _answer_text(message: Message) -> str:
    """Return what of an answer surely appears: its content without the reasoning block."""
    return message.content.rsplit(THOUGHT_TAGS[1], 1)[-1].strip()


def _find_answer(text: str, message: Message, shape: Shape, low: int) -> tuple[int, int] | None:
    """Return where an answer begins and where its content ends, by what stands in front of it."""
    needle = _answer_text(message)
    if not needle:
        at = text.find(shape.short_generation, low)
        generation = shape.generation if text.startswith(shape.generation, at) else shape.short_generation
        return None if at < 0 else (at + len(generation),) * 2
    at = text.find(needle, low)
    while at >= 0:
        begin = _begin(text, low, at, shape)
        if begin is not None:
            return begin, at + len(needle)
        at = text.find(needle, at + 1)
    return None


def _begin(text: str, low: int, at: int, shape: Shape) -> int | None:
    """Return where the answer whose content is at `at` begins, or None when that is no answer."""
    if text.endswith(shape.generation + shape.lead, low, at):
        return at if shape.is_lead_masked else at - len(shape.lead)
    if text.endswith(shape.generation, low, at):
        return at
    for generation in (shape.generation, shape.short_generation):
        found = text.rfind(generation, low, at) if generation else -1
        between = text[found + len(generation):at].strip()
        if found >= 0 and (not between or between.endswith(THOUGHT_TAGS[1])):
            return found + len(generation)
    return None


def _behind_control(text: str, message: Message, shape: Shape, low: int) -> tuple[int, int] | None:
    """Return an answer that stands right behind a control token, as behind what a tool answers ([/TOOL_RESULTS])."""
    needle = _answer_text(message)
    for found in shape.controls.finditer(text, low) if needle and shape.controls else ():
        at = text.find(needle, found.end())
        if at >= 0 and not text[found.end():at].strip():
            return found.end(), at + len(needle)
    return None


def _by_prompt(text: str, message: Message, prompt: str | None) -> tuple[int, int] | None:
    if prompt is None or not text.startswith(prompt):
        return None
    needle = _answer_text(message)
    at = text.find(needle, len(prompt))
    return None if at < 0 else (len(prompt), at + len(needle))


def _find_stop(text: str, content_end: int, shape: Shape, *, has_calls: bool) -> int:
    """Return the end of the end-of-turn token: the first control token behind the content."""
    if has_calls and shape.end_of_turn:
        at = text.find(shape.end_of_turn, content_end)
        return at + len(shape.end_of_turn) if at >= 0 else content_end
    found = shape.controls.search(text, content_end) if shape.controls else None
    if found and not text[content_end:found.start()].strip() and found.group() != shape.opener:
        return found.end()
    closing = "" if shape.opener else shape.trail.rstrip()
    return content_end + len(closing) if text.startswith(closing, content_end) else content_end
