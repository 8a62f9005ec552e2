"""Preference pairs: `chosen` and `rejected`, with the prompt in a column of its own or as the turns both share."""

from typing import Any

from danlu.core.records import Preference, Prompt
from danlu.data.answers import given_answers, has_pair
from danlu.data.formats.prompt import PROMPTS, prompt_dialogue
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, first_present, mapping_at
from danlu.data.turns import Dialogue


@FORMATS.register("preference")
class Pairs(RowFormat):
    """Answers are texts, messages, or dialogues that end on the answer."""

    kinds = (Preference, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        return has_pair(row) and (first_present(row, PROMPTS) is not None or isinstance(row["chosen"], list))

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        row = mapping_at(row)
        if first_present(row, layout.column("prompt", *PROMPTS)) is None:
            return Dialogue(())
        return prompt_dialogue(row, layout)

    def asked(self, row: Row, layout: Layout) -> Dialogue:
        return given_answers(mapping_at(row), layout, self.dialogue(row, layout))[0]
