"""Firefly rows: `conversation`, a list of `{"human": ..., "assistant": ...}` rounds, and optionally `system`."""

from collections.abc import Mapping
from typing import Any

from danlu.core.records import Message
from danlu.data.messages import messages_at, turns_of
from danlu.data.row_format import FORMATS, Layout, Row, RowFormat, mapping_at, optional_text_at, text_at
from danlu.data.turns import Dialogue, Turn, system_turn


@FORMATS.register("firefly")
class Firefly(RowFormat):
    """Each element of `conversation` is one round."""

    def matches(self, row: Row, kind: type[Any] | None = None) -> bool:
        rounds = turns_of(row)
        return bool(rounds) and isinstance(rounds[0], Mapping) and {"human", "assistant"} <= set(rounds[0])

    def dialogue(self, row: Row, layout: Layout) -> Dialogue:
        rounds, pointer = messages_at(row, layout)
        fields, systems = row if isinstance(row, Mapping) else {}, layout.column("system", "system")
        turns = system_turn(optional_text_at(fields, systems), f"/{systems[0]}" if systems else "")
        for index, one in enumerate(rounds):
            place = f"{pointer}/{index}"
            pair = mapping_at(one, place)
            turns.append(Turn(Message("user", text_at(pair, ("human",), place)), f"{place}/human"))
            turns.append(Turn(Message("assistant", text_at(pair, ("assistant",), place)), f"{place}/assistant"))
        return Dialogue(tuple(turns), pointer, columns=frozenset({pointer.lstrip("/"), *systems}))
