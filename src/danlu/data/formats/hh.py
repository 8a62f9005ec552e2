"""Pairs of transcripts: `chosen` and `rejected` are whole dialogues in one text that differ in the last answer."""

from typing import Any

from danlu.core.records import Preference, Prompt
from danlu.data.answers import Answers, has_pair
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, RowProblem, mapping_at, text_at
from danlu.data.transcript import is_transcript, read_transcript
from danlu.data.turns import Dialogue, Turn


@FORMATS.register("hh")
class Transcripts(RowFormat):
    """`\\n\\nHuman: question\\n\\nAssistant: answer`, and so on."""

    kinds = (Preference, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        return has_pair(row) and is_transcript(row["chosen"]) and is_transcript(row["rejected"])

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        chosen = self._turns(row, layout, "chosen")
        return Dialogue(tuple(chosen[:-1]), chosen[0].pointer)

    def answers(self, row: Row, layout: Layout, asked: Dialogue) -> Answers:
        chosen, rejected = self._turns(row, layout, "chosen"), self._turns(row, layout, "rejected")
        if [turn.message for turn in chosen[:-1]] != [turn.message for turn in rejected[:-1]]:
            raise RowProblem(rejected[0].pointer, "turns before the last answer that are not those of the chosen one",
                             "two transcripts that differ in their last answer only")
        return asked, (chosen[-1], rejected[-1])

    def _turns(self, row: Row, layout: Layout, role: str) -> list[Turn]:
        names = layout.column(role, role)
        return read_transcript(text_at(mapping_at(row), names), f"/{names[0]}")
