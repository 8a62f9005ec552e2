"""OpenAI messages: `{"role": ..., "content": ...}` under `messages`, or a bare list; tool calls and weights.

`weight` (or `loss_weight`) of a message scales its loss, 0 switches it off. Preference data adds `chosen` and
`rejected`, verdicts a column of true and false.
"""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Feedback, Preference, Prompt, Text
from danlu.data.answers import has_pair
from danlu.data.messages import message_dialogue, openai_turn, turns_of
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat
from danlu.data.turns import Dialogue


@FORMATS.register("openai")
class OpenAi(RowFormat):
    """Content is a text or a list of text parts; a message that calls tools may have none."""

    kinds = (Text, Conversation, Preference, Feedback, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        turns = turns_of(row)
        is_mine = bool(turns) and isinstance(turns[0], Mapping) and "role" in turns[0]
        return is_mine and (kind is not Preference or has_pair(row) and not isinstance(row["chosen"], list))

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        return message_dialogue(row, layout, openai_turn)
