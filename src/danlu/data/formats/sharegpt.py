"""ShareGPT rows: a list of turns `{"from": ..., "value": ...}`, with tools, calls and observations.

Preference data adds `chosen` and `rejected`, each a turn or a text; verdicts add a column of true and false.
"""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Conversation, Feedback, Preference, Prompt, Text
from danlu.data.answers import has_pair
from danlu.data.messages import MESSAGES, message_dialogue, sharegpt_turn, turns_of
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat
from danlu.data.turns import Dialogue

__all__ = ["MESSAGES", "ShareGpt"]


@FORMATS.register("sharegpt")
class ShareGpt(RowFormat):
    """Turns alternate: user or observation, then assistant or function call; a system turn may lead."""

    kinds = (Text, Conversation, Preference, Feedback, Prompt)

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        turns = turns_of(row)
        is_mine = bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]
        return is_mine and (kind is not Preference or has_pair(row) and not isinstance(row["chosen"], list))

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        return message_dialogue(row, layout, sharegpt_turn)
