"""What a data format is: one row of a file becomes one record. Knows nothing of files or tokens.

A format is one file in `danlu.data.formats`. A format of dialogue says what was said (`dialogue`), what was asked
(`asked`) and, of preference data, what was answered (`answers`); the records are built here from these three.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Feedback, Graded, Origin, Preference, Prompt, Record, Text
from danlu.core.registry import Registry
from danlu.data.answers import check_answers, given_answers, has_pair, has_ranking, margin_at
from danlu.data.layout import Layout
from danlu.data.row_values import (
    Row,
    RowProblem,
    first_present,
    flag_at,
    keys_of,
    kind_of,
    mapping_at,
    optional_text_at,
    text_at,
)
from danlu.data.turns import Dialogue, Turn, build_conversation, check_question, without_answer

__all__ = [
    "DETECTION_ORDER", "FORMATS", "NOUNS", "VERDICTS", "Layout", "Row", "RowFormat", "RowProblem", "detect",
    "first_present", "kind_of", "mapping_at", "optional_text_at", "text_at"]

VERDICTS = ("kto_tag", "label")
RESPONSE = "response"  # where a prompt record keeps the answer that its dialogue had
NOUNS: dict[type[Any], str] = {
    Text: "prose", Conversation: "dialogue", Preference: "preference pairs", Feedback: "verdicts", Prompt: "prompts",
    Graded: "preference pairs or verdicts"}
"""What a kind of record is called in messages."""
JUDGED: tuple[type[Any], ...] = (Preference, Feedback)  # what answers marked good or bad are read from


class RowFormat(ABC):
    """Base of every format."""

    is_dialogue: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[Any], ...]] = (Text, Conversation, Feedback, Prompt)

    @abstractmethod
    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        """Say whether a row, seen without any declaration, is of this format; `kind` is the record it is wanted for."""

    @abstractmethod
    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        """Return all turns of the row."""

    def asked(self, row: Row, layout: Layout) -> Dialogue:
        """Return the turns up to the last question or tool result."""
        return without_answer(self.dialogue(row, layout))

    def answers(self, row: Row, layout: Layout, asked: Dialogue) -> tuple[Dialogue, tuple[Turn, ...]]:
        """Return the prompt and its answers, the best first."""
        return given_answers(mapping_at(row), layout, asked)

    @classmethod
    def gives(cls, kind: type[Any]) -> bool:
        """Say whether records of this kind can be read from such rows."""
        return kind in cls.kinds or kind is Graded and any(one in cls.kinds for one in JUDGED)

    def read(self, row: Row, layout: Layout, origin: Origin, record_type: type[Record]) -> Record:
        """Return the record of kind `record_type` of the row; dialogue may come as Text (see `conversation`).

        Errors: RowProblem for a row that its format cannot read, DataError for a kind the format does not have.
        """
        if not self.gives(record_type):
            raise DataError(f"rows of the format {type(self).__name__} give no {NOUNS[record_type]}", where=str(origin))
        readers = {
            Text: self.text, Conversation: self.conversation, Preference: self.preference,
            Feedback: self.feedback, Graded: self.graded, Prompt: self.prompt,
        }
        record: Record = readers[record_type](row, layout, origin)
        return record

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation | Text:
        """Return the dialogue, or the prose when the row has nothing else (then all of it is trained)."""
        said = self.dialogue(row, layout)
        return build_conversation(said.turns, origin, said.tools, said.pointer)

    def text(self, row: Row, layout: Layout, origin: Origin) -> Text:
        """Return the row as prose: the turns of its dialogue, one below the other."""
        record = self.conversation(row, layout, origin)
        if isinstance(record, Text):
            return record
        return Text("\n".join(message.content for message in record.messages if message.content), origin)

    def preference(self, row: Row, layout: Layout, origin: Origin) -> Preference:
        """Return one prompt with its answers, best first; no two answers are alike."""
        asked, answers = self.answers(row, layout, self.asked_before(row, layout))
        prompt = check_question(asked)
        return Preference(prompt, check_answers(answers), origin, asked.tools, margin_at(row, layout))

    def asked_before(self, row: Row, layout: Layout) -> Dialogue:
        """Return the turns before the answers of preference data; a dialogue of such data ends on the question."""
        return self.dialogue(row, layout)

    def feedback(self, row: Row, layout: Layout, origin: Origin) -> Feedback:
        """Return a dialogue with its verdict."""
        verdict = flag_at(mapping_at(row), layout.column("kto_tag", *VERDICTS))
        said = self.dialogue(row, layout)
        record = build_conversation(said.turns, origin, said.tools, said.pointer)
        return Feedback(record.messages, verdict, origin)

    def graded(self, row: Row, layout: Layout, origin: Origin) -> Graded:
        """Return answers marked good or bad: one with its verdict, or those of a preference, of which the best is good.
        """
        if Preference in self.kinds and not _has_verdict(row, layout):
            if layout.columns is None and isinstance(row, Mapping) and not self.matches(row, Preference):
                wanted = f"a verdict ({' or '.join(VERDICTS)}), or a better and a worse answer"
                raise RowProblem("", keys_of(row), wanted)
            pair = self.preference(row, layout, origin)
            return Graded(pair.prompt, pair.answers, 1, origin, pair.tools)
        judged = self.feedback(row, layout, origin)
        return Graded(judged.messages[:-1], judged.messages[-1:], int(judged.desirable), origin)

    def prompt(self, row: Row, layout: Layout, origin: Origin) -> Prompt:
        """Return the messages to be answered; `extra` holds the columns they were not read from.

        A dialogue that ends on an answer leaves it in `extra` as `response`.
        """
        asked = self.asked(row, layout)
        extra = {name: value for name, value in row.items() if name not in asked.columns} if isinstance(
            row, Mapping) else {}
        if asked.answer:
            extra.setdefault(RESPONSE, asked.answer.content)
        return Prompt(check_question(asked), origin, extra, asked.tools)


FORMATS: Registry[type[RowFormat]] = Registry("data format", "danlu.data.formats")

DETECTION_ORDER = ("moss", "firefly", "sharegpt", "openai", "alpaca", "hh", "preference", "ranked",
                   "prompt_completion", "prompt", "text")


def detect(row: Row, kind: type[Any] | None = None) -> str | None:
    """Return the name of the format whose keys the row shows, None when none fits; `kind`: of those that give it."""
    if kind is Graded:
        return next((name for name in (detect(row, one) for one in JUDGED) if name is not None), None)
    extra = [name for name in FORMATS if name not in DETECTION_ORDER]
    fitting = (name for name in (*DETECTION_ORDER, *extra) if kind is None or kind in FORMATS[name].kinds)
    return next((name for name in fitting if FORMATS[name]().matches(row, kind)), None)


def _has_verdict(row: Row, layout: Layout) -> bool:
    """Say whether a row is one answer with a verdict, as declared or, without declaration, as its columns look."""
    names = layout.column("kto_tag", *VERDICTS)
    if not names or not isinstance(row, Mapping) or first_present(row, names) is None:
        return False
    return layout.columns is not None or not (has_pair(row) or has_ranking(row))
