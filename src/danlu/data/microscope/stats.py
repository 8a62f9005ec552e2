"""Numbers of data as it lies on disk: rows, turns, roles, characters, languages; tokens with a tokenizer."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.records import Record, Text
from danlu.data.encode import EncodeContext, encode_conversations
from danlu.data.ledger import Ledger
from danlu.data.lint.languages import language_of
from danlu.data.lint.reading import RowReader
from danlu.data.lint.texts import is_whole, messages_of, texts_of
from danlu.data.lint.tokens import trainable
from danlu.data.registry import Source

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
BATCH = 200
NO_LIMIT = 2**31 - 1


@dataclass(slots=True)
class Stats:
    """Numbers of one data set; four bytes a row for each length."""

    name: str
    format: str = ""
    rows: int = 0
    bad_rows: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    characters: "array[int]" = field(default_factory=lambda: array("I"))
    tokens: "array[int]" = field(default_factory=lambda: array("I"))
    trained: int = 0
    over_cutoff: int = 0
    cutoff_len: int = 0

    def add(self, record: Record) -> None:
        """Count a record."""
        texts = list(texts_of(record))
        self.characters.append(min(sum(map(len, texts)), 2**32 - 1))
        self.languages[language_of("\n".join(text for text in texts if text)[:4000])] += 1
        roles = ["text"] if isinstance(record, Text) else [message.role for message in messages_of(record)]
        self.turns.update(roles)
        self.rounds[roles.count("assistant")] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        values: dict[str, Any] = {
            "name": self.name, "format": self.format, "rows": self.rows, "bad_rows": self.bad_rows,
            "turns": sum(self.turns.values()), "roles": dict(self.turns.most_common()),
            "answers_per_row": {str(number): count for number, count in sorted(self.rounds.items())},
            "languages": {name: count / max(1, len(self.characters)) for name, count in self.languages.most_common()},
            "characters": _lengths(self.characters)}
        if self.tokens:
            values["tokens"] = _lengths(self.tokens) | {"trained": self.trained, "cutoff_len": self.cutoff_len,
                                                        "longer_than_cutoff_len": self.over_cutoff}
        return values


def count_sources(sources: Iterable[Source], context: EncodeContext | None = None) -> list[Stats]:
    """Return the numbers of each data set. Rows that cannot be read are counted, not raised."""
    found = []
    for source in sources:
        reader, stats = RowReader(source), Stats(source.name)
        records = _counted(reader, stats)
        while batch := list(islice(records, BATCH)):
            if context is not None:
                _count_tokens(batch, context, stats)
        stats.format = reader.format_name or "unknown"
        found.append(stats)
    return found


def _counted(reader: RowReader, stats: Stats) -> Iterator[Record]:
    for read in reader:
        stats.rows += read.row is not None
        if read.record is None:
            stats.bad_rows += 1
            continue
        stats.add(read.record)
        yield read.record


def _count_tokens(records: list[Record], context: EncodeContext, stats: Stats) -> None:
    """Add lengths as they are before anything is cut."""
    limit = context.config.cutoff_len
    config = context.config.model_copy(update={"cutoff_len": NO_LIMIT, "on_bad_row": "skip"})
    rows = [one for record in records if is_whole(record) for one in trainable(record)]
    stats.cutoff_len = limit
    for one in encode_conversations(rows, replace(context, ledger=Ledger(), config=config)):
        stats.tokens.append(len(one.input_ids))
        stats.trained += int(one.trained[1:].sum())
        stats.over_cutoff += len(one.input_ids) > limit


def _lengths(values: "array[int]") -> dict[str, Any]:
    found: NDArray[np.uint32] = np.frombuffer(values, np.uint32) if len(values) else np.zeros(1, np.uint32)
    shares = np.percentile(found, PERCENTILES, method="lower").astype(int).tolist()
    return {"total": int(found.sum(dtype=np.int64)), "mean": round(float(found.mean()), 1),
            "percentiles": {str(share): value for share, value in zip(PERCENTILES, shares, strict=True)}}
