"""Firefly rows: `conversation`, a list of `{"human": ..., "assistant": ...}` rounds, and optionally `system`."""

from collections.abc import Mapping

from danlu.core.records import Conversation, Message, Origin
from danlu.data.formats.sharegpt import messages_at, turns_of
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, mapping_at, optional_text_at, text_at
from danlu.data.turns import Turn, build_conversation, system_turn


@FORMATS.register("firefly")
class Firefly(RowFormat):
    """Each element of `conversation` is one round."""

    def matches(self, row: Row) -> bool:
        rounds = turns_of(row)
        return bool(rounds) and isinstance(rounds[0], Mapping) and {"human", "assistant"} <= set(rounds[0])

    def conversation(self, row: Row, layout: Layout, origin: Origin) -> Conversation:
        rounds, pointer = messages_at(row, layout)
        fields = row if isinstance(row, Mapping) else {}
        turns = system_turn(optional_text_at(fields, ("system",)), "/system")
        for index, one in enumerate(rounds):
            place = f"{pointer}/{index}"
            pair = mapping_at(one, place)
            turns.append(Turn(Message("user", text_at(pair, ("human",), place)), f"{place}/human"))
            turns.append(Turn(Message("assistant", text_at(pair, ("assistant",), place)), f"{place}/assistant"))
        return build_conversation(turns, origin, pointer=pointer)
