"""What only a tokenizer can tell: rows cut at `cutoff_len`, lost end-of-turn tokens, characters without a token."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from danlu.core.records import Conversation, Graded, Preference, Record, Text
from danlu.data.encode import EncodeContext, encode_conversations
from danlu.data.ledger import Entry, Ledger
from danlu.data.row_file import PlacedRow, RowFile

BATCH = 200


class TokenFault(NamedTuple):
    """A fault of one row that shows in its tokens."""

    file: RowFile
    row: PlacedRow
    code: str
    reason: str


@dataclass(slots=True)
class TokenCheck:
    """Encodes records in batches exactly as training does, and reads what the ledger then says."""

    context: EncodeContext
    _waiting: list[tuple[RowFile, PlacedRow, Record]] = field(default_factory=list)

    def add(self, file: RowFile, row: PlacedRow, record: Record) -> Iterator[TokenFault]:
        """Take a record; yield faults whenever a batch is full."""
        self._waiting.append((file, row, record))
        if len(self._waiting) >= BATCH:
            yield from self.flush()

    def flush(self) -> Iterator[TokenFault]:
        """Yield the faults of the records that wait."""
        waiting, self._waiting = self._waiting, []
        ledger = Ledger()
        context = replace(self.context, ledger=ledger,
                          config=self.context.config.model_copy(update={"on_bad_row": "skip"}))
        records = [one for _, _, record in waiting for one in trainable(record)]
        encoded = encode_conversations(records, context)
        rows = {(str(file.path), row.number): (file, row) for file, row, _ in waiting}
        for entry in ledger.entries:
            detail = f"{entry.reason} ({entry.detail})" if entry.detail else entry.reason
            yield TokenFault(*rows[entry.source, entry.row], _code(entry), detail)
        unknown = self.context.tokenizer.unk_token_id
        for one in encoded:
            count = 0 if unknown is None else int(np.count_nonzero(one.input_ids == unknown))
            if count:
                yield TokenFault(*rows[one.origin.source, one.origin.row], "unknown-token",
                                 f"{count} of {len(one.input_ids)} tokens are {self.context.tokenizer.unk_token}")


def trainable(record: Record) -> list[Conversation | Text]:
    """Return what is encoded of a record; of preferences each answer as a dialogue."""
    if isinstance(record, Conversation | Text):
        return [record]
    if isinstance(record, Preference | Graded):
        return [Conversation((*record.prompt, answer), record.origin, record.tools) for answer in record.answers]
    return [] if record.messages[-1].role != "assistant" else [Conversation(record.messages, record.origin)]


def _code(entry: Entry) -> str:
    if "is lost" in entry.reason:
        return "eos-lost"
    if "template" in entry.reason:
        return "template-refuses"
    return "row-lost" if entry.action == "dropped" else "too-long"
