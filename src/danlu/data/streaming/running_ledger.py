"""The ledger of a stream: counts in memory, entries on disk as they come, so that memory stays bounded."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from danlu.core.console import is_main_process, say
from danlu.data.ledger import FILE_NAME, Ledger


class RunningLedger:
    """Takes in the ledgers of windows. `write` names the folder; the file begins at the first entry."""

    def __init__(self) -> None:
        self._counts = Ledger()
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._path: Path | None = None
        self._bytes = 0

    def add(self, ledger: Ledger) -> None:
        """Add counts, and append the entries to the file."""
        self._counts.merge(Ledger(counts=ledger.counts))
        for entry in ledger.entries:
            reason = f"{entry.action}: {entry.reason}"
            self._reasons[reason] += 1
            self._first.setdefault(reason, f"{entry.source}:{entry.row}")
        self._append(line for line in ledger.json_lines() if "row" in line)

    def total(self, what: str) -> int:
        """Return a count over all sources."""
        return self._counts.total(what)

    def reasons(self) -> Counter[str]:
        """Return `action: reason` with the number of rows it happened to so far."""
        return Counter(self._reasons)

    def write(self, folder: Path) -> Path:
        """Name the folder of `data_ledger.jsonl`; entries are written there from now on."""
        self._path = folder / FILE_NAME
        return self._path

    def finish(self) -> None:
        """Write the counts, and print the short table."""
        self._append(iter(self._counts.json_lines()))
        for line in self._counts.lines():
            say(line)
        for reason, number in self._reasons.most_common():
            say(f"  {number} {reason} (first: {self._first[reason]})")

    def state(self) -> dict[str, Any]:
        """Return counts, reasons and the length of the file."""
        counts = {source: dict(found) for source, found in self._counts.counts.items()}
        return {"counts": counts, "reasons": dict(self._reasons), "first": self._first, "bytes": self._bytes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to `state`; what the file holds beyond it goes."""
        self._counts = Ledger({source: Counter(found) for source, found in state["counts"].items()})
        self._reasons, self._first = Counter(state["reasons"]), dict(state["first"])
        self._bytes = state["bytes"]

    def _append(self, lines: Any) -> None:
        if self._path is None or not is_main_process():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.truncate(min(self._bytes, os.fstat(file.fileno()).st_size))
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._bytes = file.seek(0, os.SEEK_END)
