"""The rows of a run in their order: epochs over the mixed data sets, through a shuffle buffer, cut into windows.

The order is a function of the data and the seeds alone: every process of a run sees the same one. What a checkpoint
keeps is where each data set stands, and the places of the rows in the buffer, never the rows themselves.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.core.records import Graded, Preference, Record, Text
from danlu.data.ledger import Ledger
from danlu.data.streaming.mixer import Mixer
from danlu.data.streaming.set_walk import Ref, SetWalk

WINDOW_ROWS = 1024
WINDOW_CHARACTERS = 1 << 24
BUFFER_BYTES = 1 << 28  # of rows held in the shuffle buffer; what is beyond is read again when it is drawn
DRAWS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that are encoded and packed together.

    start    state of the stream before the window was drawn
    drawn    rows of the epoch drawn before it
    ledger   what happened to the rows that were read while it was drawn
    is_last  the epoch ends with it
    """

    start: dict[str, Any]
    epoch: int
    drawn: int
    refs: list[Ref]
    records: list[Record]
    ledger: Ledger
    is_last: bool


class ShuffleBuffer:
    """Holds up to `size` rows and gives them back in random order; draw n depends on seed, epoch, n only."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.restart(0)

    def restart(self, epoch: int) -> None:
        """Begin an epoch, empty."""
        self.refs: list[Ref] = []
        self._records: list[Record | None] = []
        self._epoch, self.drawn, self._block, self._bytes = epoch, 0, -1, 0

    @property
    def is_full(self) -> bool:
        """Say whether a row must be drawn before another is put in."""
        return len(self.refs) >= self.size

    def put(self, ref: Ref, record: Record) -> None:
        """Take a row in; beyond BUFFER_BYTES only its place."""
        size = memory_of(record)
        is_held = self._bytes + size <= BUFFER_BYTES
        self._bytes += size * is_held
        self.refs.append(ref)
        self._records.append(record if is_held else None)

    def draw(self) -> tuple[Ref, Record | None]:
        """Give one row out; None stands for a record that must be read again."""
        chosen = int(self._uniform() * len(self.refs))
        self.drawn += 1
        ref, record = self.refs[chosen], self._records[chosen]
        last_ref, last_record = self.refs.pop(), self._records.pop()
        if chosen < len(self.refs):
            self.refs[chosen], self._records[chosen] = last_ref, last_record
        self._bytes -= 0 if record is None else memory_of(record)
        return ref, record

    def restore(self, epoch: int, drawn: int, refs: Sequence[Ref], records: dict[Ref, Record]) -> None:
        """Hold these rows again."""
        self.restart(epoch)
        self.drawn = drawn
        for ref in refs:
            self.put(ref, records[ref])

    def _uniform(self) -> float:
        block, place = divmod(self.drawn, DRAWS_AT_A_TIME)
        if block != self._block:
            self._block = block
            self._uniforms = np.random.default_rng([self.seed, self._epoch, block]).random(DRAWS_AT_A_TIME)
        return float(self._uniforms[place])


class RowStream:
    """Endless: one epoch after the other."""

    def __init__(self, walks: Sequence[SetWalk], mixer: Mixer, buffer: ShuffleBuffer) -> None:
        self.walks, self.mixer, self.buffer = walks, mixer, buffer
        self.epoch = 0

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, in numbers, names and lists of them."""
        return {"epoch": self.epoch, "mixer": self.mixer.state(), "walks": [walk.state() for walk in self.walks],
                "drawn": self.buffer.drawn, "buffer": list(self.buffer.refs)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken; of the rows before it only those in the buffer are read."""
        self.epoch = state["epoch"]
        self._note_in(Ledger())
        refs: list[Ref] = [(owner, file, place, number) for owner, file, place, number in state["buffer"]]
        self.mixer.restore(state["mixer"])
        for walk, saved in zip(self.walks, state["walks"], strict=True):
            walk.restore(saved)
        self.buffer.restore(self.epoch, state["drawn"], refs, self.read_again(refs))

    def read_again(self, refs: Sequence[Ref]) -> dict[Ref, Record]:
        """Read rows by their places, in the order of the files."""
        return {ref: self.walks[ref[0]].rows.read_at(*ref[1:]) for ref in sorted(set(refs))}

    def window(self) -> Window:
        """Draw the next rows of the epoch; at its end the next epoch begins."""
        ledger = Ledger()
        self._note_in(ledger)
        start, epoch, drawn = self.state(), self.epoch, self.buffer.drawn
        refs, records, characters = list[Ref](), list[Record](), 0
        self._fill()
        while self.buffer.refs and len(refs) < WINDOW_ROWS and characters < WINDOW_CHARACTERS:
            ref, record = self.buffer.draw()
            record = self.walks[ref[0]].rows.read_at(*ref[1:]) if record is None else record
            refs.append(ref)
            records.append(record)
            characters += sum(map(len, texts_of(record)))
            self._fill()
        is_last = not self.buffer.refs
        if is_last:
            self._begin(epoch + 1)
        return Window(start, epoch, drawn, refs, records, ledger, is_last)

    def _fill(self) -> None:
        while not self.buffer.is_full:
            owner = self.mixer.next()
            if owner is None:
                return
            ref, record = self.walks[owner].next()
            if record is not None:
                self.buffer.put(ref, record)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.mixer.restart()
        self.buffer.restart(epoch)
        for walk in self.walks:
            walk.restart()

    def _note_in(self, ledger: Ledger) -> None:
        for walk in self.walks:
            walk.rows.ledger = ledger


def texts_of(record: Record) -> list[str]:
    """Return the texts of a record, whatever its kind."""
    if isinstance(record, Text):
        return [record.text]
    messages = (*record.prompt, *record.answers) if isinstance(record, Preference | Graded) else record.messages
    return [message.content for message in messages]


def memory_of(record: Record) -> int:
    """Return about how many bytes a record takes."""
    return 200 + sum(200 + sys.getsizeof(text) for text in texts_of(record))
