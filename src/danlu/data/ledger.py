"""The ledger: how many rows of each source were read, used, cut and dropped, and why. Nothing is dropped without it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.console import say
from danlu.core.records import Origin

FILE_NAME = "data_ledger.jsonl"
MOST_LINES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened to one row: cut or dropped, and why."""

    source: str
    row: int
    action: str
    reason: str
    detail: str = ""


@dataclass(slots=True)
class Ledger:
    """Counts per source, and one entry for each row that was cut or dropped."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def count(self, source: str, what: str, number: int = 1) -> None:
        """Add to a count of a source: `read`, `used`, `not selected`, ..."""
        self.counts.setdefault(source, Counter())[what] += number

    def cut(self, origin: Origin, reason: str, detail: str = "") -> None:
        """Note a row that was shortened."""
        self._note(origin, "cut", reason, detail)

    def drop(self, origin: Origin, reason: str, detail: str = "") -> None:
        """Note a row that is not used."""
        self._note(origin, "dropped", reason, detail)

    def merge(self, other: "Ledger") -> None:
        """Add another ledger's counts and entries to this one."""
        for source, counts in other.counts.items():
            self.counts.setdefault(source, Counter()).update(counts)
        self.entries += other.entries

    def total(self, what: str) -> int:
        """Return a count over all sources."""
        return sum(counts[what] for counts in self.counts.values())

    def reasons(self) -> Counter[str]:
        """Return `action: reason` with the number of rows it happened to."""
        return Counter(f"{entry.action}: {entry.reason}" for entry in self.entries)

    def lines(self) -> list[str]:
        """Return the short table: one line a source (one in all when they are many), one line a reason."""
        rows = [f"data {source}: {_spell(counts)}" for source, counts in sorted(self.counts.items())]
        if len(rows) > MOST_LINES:
            rows = [f"data of {len(self.counts)} files: {_spell(sum(self.counts.values(), Counter()))}"]
        first = {f"{entry.action}: {entry.reason}": f"{entry.source}:{entry.row}" for entry in reversed(self.entries)}
        rows += [f"  {number} {reason} (first: {first[reason]})" for reason, number in self.reasons().most_common()]
        return rows

    def announce(self) -> None:
        """Print the short table."""
        for line in self.lines():
            say(line)

    def write(self, folder: Path) -> Path:
        """Write `data_ledger.jsonl`: one line of counts for each source, then one line for each row cut or dropped."""
        path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for line in self.json_lines():
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return path

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values."""
        return {"counts": self.counts, "entries": [
            [entry.source, entry.row, entry.action, entry.reason, entry.detail] for entry in self.entries]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Ledger":
        """Return the ledger that `to_dict` gave."""
        counts = {source: Counter(found) for source, found in values["counts"].items()}
        return cls(counts, [Entry(*entry) for entry in values["entries"]])

    def _note(self, origin: Origin, action: str, reason: str, detail: str) -> None:
        entry = self.entries[-1] if self.entries else None
        before = entry.action if entry is not None and (entry.source, entry.row) == (origin.source, origin.row) else ""
        if before == "cut" and action == "dropped":  # a row is counted by what became of it in the end
            self.count(origin.source, "cut", -1)
        if before != action:
            self.count(origin.source, action)
        self.entries.append(Entry(origin.source, origin.row, action, reason, detail))

    def json_lines(self) -> Iterable[dict[str, Any]]:
        """Yield one line of counts for each source, then one for each entry."""
        for source, counts in sorted(self.counts.items()):
            yield {"source": source, **counts}
        for entry in self.entries:
            yield {"source": entry.source, "row": entry.row, "action": entry.action, "reason": entry.reason,
                   "detail": entry.detail}


def _spell(counts: Counter[str]) -> str:
    order = ["read", "used", "cut", "dropped"]
    names = [name for name in order if counts[name]] + sorted(set(counts) - set(order))
    return ", ".join(f"{counts[name]} {name}" for name in names)
