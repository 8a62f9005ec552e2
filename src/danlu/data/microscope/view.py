"""One example or record as tokens that know what training does with them.

What is trained is read from the flat stream that the loss is computed on; nothing is worked out a second time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.core.records import Conversation, Record
from danlu.core.stream import Example, flatten
from danlu.data.encode import EncodeContext
from danlu.data.ledger import Ledger
from danlu.templates import Encoded
from danlu.templates.controls import control_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = 2**31 - 1
PART = "▯"
"""Shown for a token that is a part of a character; the last part shows the character."""
LONGEST_CHARACTER = 8
THOUGHT = ("<think>", "</think>")

Encode = Callable[[Sequence[Any], EncodeContext], list[Encoded]]


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its lot. `position` None: cut, so it has none; `weight` is 0 where nothing is trained."""

    id: int
    text: str
    position: int | None
    weight: float
    is_special: bool
    segment: int = 0

    @property
    def is_trained(self) -> bool:
        """True when the loss counts this token."""
        return self.weight > 0

    @property
    def is_cut(self) -> bool:
        """True when the token is not in the example."""
        return self.position is None


@dataclass(frozen=True, slots=True)
class View:
    """The tokens of one example, where it came from, and what else there is to say about it."""

    title: str
    tokens: tuple[Token, ...]
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Numbers of tokens in words."""
        kept = [token for token in self.tokens if not token.is_cut]
        cut = len(self.tokens) - len(kept)
        trained = sum(token.is_trained for token in kept)
        return f"{len(kept)} tokens, {trained} trained" + (f", {cut} cut" if cut else "")


@dataclass(frozen=True, slots=True)
class Lens:
    """Turns ids into tokens that can be shown."""

    tokenizer: "PreTrainedTokenizerBase"
    special: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, context: EncodeContext) -> "Lens":
        """Return the lens for a tokenizer and its template."""
        tokenizer, template = context.tokenizer, context.template
        strings = control_strings(tokenizer, template.literal_text(tokenizer) if template else "")
        ids = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(sorted(strings))}
        return cls(tokenizer, frozenset(one for one in ids if one is not None))

    def example(self, example: Example, title: str, notes: Sequence[str] = ()) -> View:
        """Return the view of an example as the loss sees it: the first token of a segment is never trained."""
        stream = flatten([example])
        weights = np.zeros(len(stream.input_ids), np.float32)
        weights[stream.loss_rows + 1] = stream.loss_weights
        segments = np.repeat(np.arange(len(example.lengths)), example.lengths).tolist()
        ids = stream.input_ids.tolist()
        texts = self.texts(ids)
        return View(title, tuple(
            Token(one, text, position, float(weight), one in self.special, segment)
            for one, text, position, weight, segment in zip(
                ids, texts, stream.position_ids.tolist(), weights.tolist(), segments, strict=True)), tuple(notes))

    def cut(self, ids: Sequence[int]) -> tuple[Token, ...]:
        """Return tokens that were cut away."""
        return tuple(Token(one, text, None, 0.0, one in self.special)
                     for one, text in zip(ids, self.texts(ids), strict=True))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return what each token stands for; a character of several tokens stands at its last."""
        shown: list[str] = []
        pending: list[int] = []
        for one in ids:
            piece = self.tokenizer.convert_ids_to_tokens(one)
            if one in self.special or piece is None:
                shown += [PART] * len(pending) + [str(piece or f"[{one}]")]
                pending = []
                continue
            pending.append(one)
            text = self._decoded(pending, str(piece))
            if text.endswith("\ufffd") and len(pending) < LONGEST_CHARACTER:
                continue
            shown += [PART] * (len(pending) - 1) + [text]
            pending = []
        return shown + [PART] * len(pending)

    def _decoded(self, ids: list[int], last: str) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Sentencepiece takes the space off the start of what it decodes.
        return f" {text}" if last.startswith("▁") and len(ids) == 1 and not text.startswith(" ") else text


def view_record(record: Record, encode: Encode, context: EncodeContext, lens: Lens, title: str) -> list[View]:
    """Return the examples that a record becomes, each with what was cut away; one view of cut tokens when none is left.

    `encode` is that of the stage, so that what is shown is what is trained.
    """
    ledger = Ledger()
    kept = encode([record], replace(context, ledger=ledger))
    whole = encode([record], replace(context, ledger=Ledger(), config=context.config.model_copy(
        update={"cutoff_len": NO_LIMIT})))
    ids = [one for encoded in whole for one in encoded.input_ids.tolist()]
    notes = [f"{entry.action}: {entry.reason}" + (f" ({entry.detail})" if entry.detail else "")
             for entry in ledger.entries] + _lost_thoughts(record, context, ids)
    if not kept:
        return [View(title, lens.cut(ids), tuple(notes))]
    views = [lens.example(one.to_example(), title, notes) for one in kept]
    return [_with_cut(views[0], ids, lens)] if len(views) == 1 else [
        replace(view, title=f"{title}, part {number} of {len(views)}") for number, view in enumerate(views, 1)]


def _with_cut(view: View, whole: list[int], lens: Lens) -> View:
    """Put the tokens that were cut away where they were: before the last, behind the first, or between rounds."""
    kept = [token.id for token in view.tokens]
    if len(whole) <= len(kept):
        return view
    first = _same(kept, whole)
    last = _same(kept[first:][::-1], whole[first:][::-1])
    gone = lens.cut(whole[first:len(whole) - last])
    place = len(kept) - last
    return replace(view, tokens=view.tokens[:place] + gone + view.tokens[place:])


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many elements two sequences begin with in common."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _lost_thoughts(record: Record, context: EncodeContext, ids: Sequence[int]) -> list[str]:
    """Say which answers' reasoning the template leaves out."""
    if not isinstance(record, Conversation):
        return []
    text = context.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    answers = [message for message in record.messages if message.role == "assistant"]
    notes = []
    for number, message in enumerate(answers, 1):
        thought = message.reasoning or _between(message.content)
        if thought.strip() and thought.strip()[:60] not in text:
            notes.append(f"the reasoning of answer {number} of {len(answers)} is left out by the template "
                         "(see preserve_thinking, enable_thinking)")
    return notes


def _between(content: str) -> str:
    opening, closing = THOUGHT
    return content.split(opening, 1)[1].split(closing, 1)[0] if opening in content and closing in content else ""
