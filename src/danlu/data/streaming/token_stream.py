"""The examples of a run without end, made while they are needed; a state of places brings any of them back."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import notice
from danlu.core.errors import ConfigError, DataError
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.dataset import MOST_ORIGINS
from danlu.data.packing import Arranged
from danlu.data.streaming.encoding import EncodedWindow, WindowEncoder
from danlu.data.streaming.estimate import Arrange, Estimate
from danlu.data.streaming.row_stream import RowStream
from danlu.data.streaming.running_ledger import RunningLedger
from danlu.data.streaming.set_walk import Ref
from danlu.data.truncate import piece
from danlu.templates import Encoded


@dataclass(frozen=True, slots=True)
class Carried:
    """Tokens from `start` on of a row, waiting for a block to be filled: they begin the next window."""

    ref: Ref
    start: int
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class Made:
    """An example and where its rows were read."""

    example: Example
    origins: tuple[str, ...]


class TokenStream:
    """Stands in for `TokenDataset`; examples are taken in order, and `len` is an estimate of an epoch.

    position  number of the next example, counted over all epochs
    """

    def __init__(self, rows: RowStream, encoder: WindowEncoder, arrange: Arrange, config: DataConfig,
                 estimate: Estimate, fingerprint: str) -> None:
        self._rows, self._encoder, self._arrange, self._config = rows, encoder, arrange, config
        self.estimate, self.fingerprint = estimate, fingerprint
        self.ledger = RunningLedger()
        self._num_rows = sum(rows.mixer.rows_of_an_epoch())
        self._highest_id: int | None = None
        self._begin(encoder.run(rows.window))
        self.position, self._of_epoch = 0, 0

    def __len__(self) -> int:
        return self.estimate.examples

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each example of the sample that the estimate was made from."""
        return self.estimate.lengths

    @property
    def num_tokens(self) -> int:
        """Tokens of an epoch, estimated."""
        return self.estimate.tokens

    @property
    def num_trained(self) -> int:
        """Tokens of an epoch that carry loss, estimated."""
        return self.estimate.trained

    def longest(self) -> tuple[int, str]:
        """Return the tokens of the longest text that may come, and where it is from."""
        if self.estimate.is_exact:
            return int(self.estimate.lengths.max()), "the longest row"
        return self._config.cutoff_len, "a stream, in which rows may have cutoff_len tokens"

    @property
    def epoch(self) -> float:
        """How often the rows have been seen."""
        if self._window is None:
            return 0.0
        window = self._window.window
        done: float = self._handed / max(self._num_made, 1)
        return window.epoch + (window.drawn + done * len(window.refs)) / self._num_rows

    def batch(self, size: int, *, drop_last: bool = False) -> list[int]:
        """Return the positions of the next `size` examples, fewer at the end of an epoch (none of these: drop_last).

        What was handed out before is forgotten.
        """
        for old in [one for one in self._held if one < self.position]:
            del self._held[old]
        first = self.position
        while self.position - first < size:
            if self._hand_out():
                continue
            if self.position > first and not drop_last:
                break
            if drop_last and self._of_epoch == self.position - first:
                raise ConfigError(
                    f"dataloader_drop_last leaves nothing: an epoch has {self._of_epoch} examples, a step {size}",
                    fix="lower per_device_train_batch_size or gradient_accumulation_steps")
            first = self.position
        return list(range(first, self.position))

    def __getitem__(self, index: int) -> Example:
        """Return an example of the last batch, or the one to come."""
        return self._made(index).example

    def origin(self, index: int) -> str:
        """Return `file:row` of an example of the last batch; of a packed one, those of its first records."""
        rows = self._made(index).origins
        more = f" and {len(rows) - MOST_ORIGINS} more" if len(rows) > MOST_ORIGINS else ""
        return ", ".join(rows[:MOST_ORIGINS]) + more

    def find_ids(self, limit: int) -> list[tuple[int, str]]:
        """Return the ids of at least `limit` in the sample, with an origin; such ids stop the stream from now on."""
        self._highest_id = limit - 1
        return [(one, origin) for one, origin in sorted(self.estimate.ids.items()) if one >= limit]

    def state(self) -> dict[str, Any]:
        """Return where the stream stands: places and counters, in types that torch.load takes as safe."""
        started = self._window is not None
        return {
            "fingerprint": self.fingerprint, "position": self.position, "of_epoch": self._of_epoch,
            "handed": self._handed, "window": self._window.window.start if self._window else None,
            "carried": [(*one.ref, one.start, len(one.encoded.input_ids)) for one in self._carried_in],
            "ledger": self.ledger.state() if started else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken: the rows in the buffer and those of the current window are read again."""
        if state["fingerprint"] != self.fingerprint:
            notice("the data has changed since the checkpoint: the stream begins anew")
            return
        self.position, self._of_epoch = state["position"], state["of_epoch"]
        if state["window"] is None:
            return
        self._encoded.close()
        self._rows.restore(state["window"])
        self.ledger.restore(state["ledger"])
        carried = self._carried(state["carried"])
        self._begin(self._encoder.run(self._rows.window), carried)
        self._next_window()
        if state["handed"] > self._num_made:
            raise DataError("the rows of the checkpoint give fewer examples than before", where="the data",
                            fix="restore the data set, or set overwrite_output_dir: true to start anew")
        for _ in range(state["handed"]):
            self._waiting.popleft()
        self._handed = state["handed"]

    def finish(self) -> None:
        """End the processes; write and print the ledger."""
        self._encoder.close()
        if self._window is not None:
            self._settle(self._window)
        self.ledger.finish()

    def _begin(self, encoded: Iterator[EncodedWindow], carried: Sequence[Carried] = ()) -> None:
        self._encoded: Any = encoded
        self._window: EncodedWindow | None = None
        self._carried_in: list[Carried] = []
        self._carry = list(carried)
        self._waiting: deque[Made] = deque()
        self._held: dict[int, Made] = {}
        self._handed = self._num_made = 0
        self._is_told = False  # that the epoch ends with the window in hand

    def _made(self, index: int) -> Made:
        if index == self.position and index not in self._held:
            while not self._waiting:
                self._next_window()
            return replace(self._waiting[0], example=replace(self._waiting[0].example, index=index))
        if index not in self._held:
            raise IndexError(f"example {index}: a stream holds the last batch only, and example {self.position} comes")
        return self._held[index]

    def _hand_out(self) -> bool:
        """Make the next example part of the batch; False where an epoch ends before it."""
        while not self._waiting:
            if self._window is not None and self._window.window.is_last and not self._is_told:
                self._is_told = True
                if not self._of_epoch:
                    raise self._rows.walks[0].rows.no_rows()
                return False
            self._next_window()
        made = self._waiting.popleft()
        self._held[self.position] = replace(made, example=replace(made.example, index=self.position))
        self.position += 1
        self._of_epoch += 1
        self._handed += 1
        return True

    def _next_window(self) -> None:
        if self._window is not None:
            self._settle(self._window)
            self._of_epoch *= not self._window.window.is_last
        self._window = window = next(self._encoded)
        self._is_told = False
        self._check_ids(window.encoded)
        self._carried_in = self._carry
        encoded = [*(one.encoded for one in self._carry), *window.encoded]
        examples = self._arrange(encoded, self._config) if encoded else []
        is_open = isinstance(examples, Arranged) and examples.is_open and not window.window.is_last
        self._carry = self._open_part(examples, window) if is_open and isinstance(examples, Arranged) else []
        for index in range(len(examples) - is_open):
            members = examples.members(index) if isinstance(examples, Arranged) else (index,)
            self._waiting.append(Made(examples[index], tuple(str(encoded[one].origin) for one in members)))
        self._handed, self._num_made = 0, len(self._waiting)

    def _settle(self, window: EncodedWindow) -> None:
        """Enter the first epoch into the ledger; later ones read the same rows."""
        if window.window.epoch == 0:
            self.ledger.add(window.ledger)

    def _open_part(self, examples: Arranged, window: EncodedWindow) -> list[Carried]:
        places = {(str(self._path(ref)), ref[3]): ref for ref in window.window.refs}
        carried = []
        for which, start, end in examples.slices(len(examples) - 1):
            if which < len(self._carried_in):
                ref, before, one = (found := self._carried_in[which]).ref, found.start, found.encoded
            else:
                one, before = window.encoded[which - len(self._carried_in)], 0
                ref = places[(one.origin.source, one.origin.row)]
            carried.append(Carried(ref, before + start, piece(one, start, end)))
        return carried

    def _carried(self, saved: Sequence[Sequence[int]]) -> list[Carried]:
        refs: list[Ref] = [(one[0], one[1], one[2], one[3]) for one in saved]
        records = self._rows.read_again(refs)
        return [Carried(ref, start, piece(self._encoder.one(records[ref])[0], start, start + length))
                for ref, (*_, start, length) in zip(refs, saved, strict=True)]

    def _path(self, ref: Ref) -> Any:
        return self._rows.walks[ref[0]].rows.files[ref[1]].path

    def _check_ids(self, encoded: Sequence[Encoded]) -> None:
        if self._highest_id is None:
            return
        for one in encoded:
            if one.input_ids.max(initial=0) > self._highest_id:
                raise DataError(f"token id {one.input_ids.max()} is outside the model's embedding, which has "
                                f"{self._highest_id + 1} rows", where=str(one.origin),
                                fix="set resize_vocab: true, or use the tokenizer that belongs to the model")
