"""What a data format is: one row of a file becomes one record. Knows nothing of files or tokens.

A format is one file in `danlu.data.formats`. A format of dialogue says what was said (`dialogue`), what was asked
(`asked`) and, of preference data, what was answered (`answers`); the records are built here from these three.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Feedback, Origin, Preference, Prompt, Record, Text
from danlu.core.registry import Registry
from danlu.data.answers import check_answers, given_answers
from danlu.data.layout import Layout
from danlu.data.row_values import (
    Row,
    RowProblem,
    first_present,
    flag_at,
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
    Text: "prose", Conversation: "dialogue", Preference: "preference pairs", Feedback: "verdicts", Prompt: "prompts"}


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

    def read(self, row: Row, layout: Layout, origin: Origin, record_type: type[Record]) -> Record:
        """Return the record of kind `record_type` of the row; dialogue may come as Text (see `conversation`).

        Errors: RowProblem for a row that its format cannot read, DataError for a kind the format does not have.
        """
        if record_type not in self.kinds:
            raise DataError(f"rows of the format {type(self).__name__} give no {NOUNS[record_type]}", where=str(origin))
        readers = {
            Text: self.text, Conversation: self.conversation, Preference: self.preference,
            Feedback: self.feedback, Prompt: self.prompt,
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
        return Preference(prompt, check_answers(answers), origin, asked.tools)

    def asked_before(self, row: Row, layout: Layout) -> Dialogue:
        """Return the turns before the answers of preference data; a dialogue of such data ends on the question."""
        return self.dialogue(row, layout)

    def feedback(self, row: Row, layout: Layout, origin: Origin) -> Feedback:
        """Return a dialogue with its verdict."""
        verdict = flag_at(mapping_at(row), layout.column("kto_tag", *VERDICTS))
        said = self.dialogue(row, layout)
        record = build_conversation(said.turns, origin, said.tools, said.pointer)
        return Feedback(record.messages, verdict, origin)

    def prompt(self, row: Row, layout: Layout, origin: Origin) -> Prompt:
        """Return the messages to be answered; `extra` holds the columns they were not read from.

        A dialogue that ends on an answer leaves it in `extra` as `response`.
        """
        asked = self.asked(row, layout)
        extra = {name: value for name, value in row.items() if name not in asked.columns} if isinstance(
            row, Mapping) else {}
        if asked.answer:
            extra.setdefault(RESPONSE, asked.answer.content)
        return Prompt(check_question(asked), origin, extra)


FORMATS: Registry[type[RowFormat]] = Registry("data format", "danlu.data.formats")

DETECTION_ORDER = ("moss", "firefly", "sharegpt", "openai", "alpaca", "hh", "preference", "ranked",
                   "prompt_completion", "prompt", "text")


def detect(row: Row, kind: type[Any] | None = None) -> str | None:
    """Return the name of the format whose keys the row shows, None when none fits; `kind`: of those that give it."""
    extra = [name for name in FORMATS if name not in DETECTION_ORDER]
    fitting = (name for name in (*DETECTION_ORDER, *extra) if kind is None or kind in FORMATS[name].kinds)
    return next((name for name in fitting if FORMATS[name]().matches(row, kind)), None)
