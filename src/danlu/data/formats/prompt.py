"""Rows that only ask: a prompt as a text or a list of messages; what else they hold is kept for the reward."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Prompt
from danlu.data.layout import Layout
from danlu.data.messages import read_turns
from danlu.data.row_format import FORMATS, Row, RowFormat, first_present, mapping_at, optional_text_at, text_at
from danlu.data.transcript import read_prompt_text
from danlu.data.turns import Dialogue, system_turn

PROMPTS = ("prompt", "user_prompt", "question", "query", "input", "instruction", "problem")


@FORMATS.register("prompt")
class PromptOnly(RowFormat):
    """`system` may give the system turn."""

    kinds = (Prompt,)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        return kind is Prompt and isinstance(row, Mapping) and first_present(row, PROMPTS) is not None

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        return prompt_dialogue(mapping_at(row), layout)


def prompt_dialogue(row: Mapping[str, Any], layout: Layout) -> Dialogue:
    """Return the turns of the prompt column, after those of a system column."""
    names, systems = layout.column("prompt", *PROMPTS), layout.column("system", "system")
    name = first_present(row, names)
    if name is not None and isinstance(row[name], list):
        turns = read_turns(row[name], f"/{name}", layout)
    else:
        turns = read_prompt_text(text_at(row, names), f"/{name}")
    leading = system_turn(optional_text_at(row, systems), f"/{systems[0]}" if systems else "")
    return Dialogue((*leading, *turns), f"/{name}", columns=frozenset({str(name), *systems}))
