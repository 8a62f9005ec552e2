"""A dialogue as text, before any tokenizer has seen it: the string, and where in it each answer begins and ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from danlu.core.records import Message, Origin


@dataclass(frozen=True, slots=True)
class Turn:
    """One round in character offsets of the rendered text.

    start         first character of the round
    answer_start  end of the generation prompt: the model speaks from here
    stop          behind the end-of-turn token, the last character that carries loss
    end           behind the text that closes the round (a newline, often)
    anchor        the template's own text right before `answer_start`
    message       index of the answer in the conversation
    """

    start: int
    answer_start: int
    stop: int
    end: int
    anchor: str
    message: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a dialogue; it is tokenised in pieces that end at `cuts` and at each turn's `answer_start`."""

    text: str
    turns: tuple[Turn, ...] = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a template is asked to render: messages whose control-token look-alikes are already marked."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, object], ...] = ()
    is_prompt: bool = False


def without_marks(rendered: Rendered, mark: str) -> Rendered:
    """Take the marks out of the text, shift every offset, and remember where they were as cuts."""
    if mark not in rendered.text:
        return rendered
    parts = rendered.text.split(mark)
    cuts, length = [], 0
    for part in parts[:-1]:
        length += len(part)
        cuts.append(length)
    text = rendered.text

    def shift(offset: int) -> int:
        return offset - text.count(mark, 0, offset) * len(mark)

    turns = tuple(
        Turn(shift(t.start), shift(t.answer_start), shift(t.stop), shift(t.end), t.anchor.replace(mark, ""), t.message)
        for t in rendered.turns)
    return Rendered("".join(parts), turns, tuple(cuts))


def last_answer(messages: Sequence[Message]) -> int:
    """Return the index of the last assistant message, or -1."""
    return max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
