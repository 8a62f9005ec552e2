"""One checkpoint at a time, written while the run goes on; the run waits only where it would change what is written.

Weights and moments change in one place, the optimiser's step. So a checkpoint needs no copy of them: its files are
filled from the live tensors during the next forward and backward pass, and the step after it waits until they are.
Checksums, syncing and the rename follow during later steps.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is whole on the disk."""

    step: int
    folder: Path


class Writer:
    """Runs `store` and `seal` of one checkpoint behind the run, or in place when `in_background` is false.

    A failure is raised by whichever of `before_change`, `collect` and `wait` comes next.
    """

    def __init__(self, *, in_background: bool) -> None:
        self.in_background = in_background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="danlu-checkpoint")
        self._running: Future[Saved] | None = None
        self._stored = Event()

    def start(self, store: Callable[[], None], seal: Callable[[], Saved]) -> None:
        """Begin to write; the previous checkpoint must have been waited for."""
        if self._running is not None:
            raise RuntimeError("a checkpoint is still being written")
        self._stored.clear()
        self._running = self._pool.submit(self._write, store, seal)
        if not self.in_background:
            self._running.exception()

    def before_change(self) -> None:
        """Return when the tensors of a checkpoint in flight have been read, so that they may change."""
        if self._running is not None:
            self._stored.wait()
            if self._running.done() and (error := self._running.exception()) is not None:
                self._running = None
                raise error

    def collect(self) -> Saved | None:
        """Return the checkpoint that has become whole since the last call, if any."""
        return self.wait() if self._running is not None and self._running.done() else None

    def wait(self) -> Saved | None:
        """Return the checkpoint in flight once it is whole; None when there is none."""
        running, self._running = self._running, None
        return running.result() if running is not None else None

    def close(self) -> BaseException | None:
        """Finish what is in flight and end the thread; return what went wrong, for a run that ends in an error."""
        running, self._running = self._running, None
        self._pool.shutdown(wait=True)
        return running.exception() if running is not None else None

    def _write(self, store: Callable[[], None], seal: Callable[[], Saved]) -> Saved:
        try:
            with torch.no_grad():
                store()
        finally:
            self._stored.set()
        return seal()
