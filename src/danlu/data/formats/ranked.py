"""Ranked lists: a prompt and several answers, with ranks (1 is best) or scores (the highest is best)."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Preference, Prompt
from danlu.data.answers import Answers, has_ranking, ranked_answers
from danlu.data.formats.prompt import PROMPTS, prompt_dialogue
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, first_present, mapping_at
from danlu.data.turns import Dialogue


@FORMATS.register("ranked")
class Ranked(RowFormat):
    """Ranks and scores stand beside the list of answers, or in each of them."""

    kinds = (Preference, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        return isinstance(row, Mapping) and first_present(row, PROMPTS) is not None and has_ranking(row)

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        return prompt_dialogue(mapping_at(row), layout)

    def answers(self, row: Row, layout: Layout, asked: Dialogue) -> Answers:
        return ranked_answers(mapping_at(row), layout, asked)
