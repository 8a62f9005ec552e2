"""Encoding windows of rows, here or ahead of time in other processes; always in their order. Needs no torch."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from danlu.core.records import Record
from danlu.data.encode import EncodeContext, Encoded
from danlu.data.ledger import Ledger
from danlu.data.prepare import Encode
from danlu.data.streaming.row_stream import Window

AHEAD = 2  # windows in work for each process


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """A window with its tokens; `ledger` holds what happened to its rows from the file on."""

    window: Window
    encoded: list[Encoded]
    ledger: Ledger


class WindowEncoder:
    """Encodes with a stage's `encode`. `processes` 0 encodes in this one, when a window is asked for."""

    def __init__(self, encode: Encode, context: EncodeContext, processes: int) -> None:
        self._encode, self._context, self._processes = encode, context, processes
        self._pool: ProcessPoolExecutor | None = None

    def run(self, next_window: Callable[[], Window]) -> Iterator[EncodedWindow]:
        """Yield windows without end; with processes, a few are drawn ahead."""
        if not self._processes:
            while True:
                window = next_window()
                yield _joined(window, *encode_records(self._encode, self._context, window.records))
        working: deque[tuple[Window, Future[tuple[list[Encoded], Ledger]]]] = deque()
        try:
            while True:
                while len(working) < AHEAD * self._processes:
                    window = next_window()
                    working.append((window, self._started().submit(_encode_in_process, window.records)))
                window, future = working.popleft()
                yield _joined(window, *future.result())
        finally:
            for _, future in working:
                future.cancel()

    def one(self, record: Record) -> list[Encoded]:
        """Encode one record here and now."""
        return encode_records(self._encode, self._context, [record])[0]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # A fresh interpreter holds neither torch nor the parent's threads and locks.
            self._pool = ProcessPoolExecutor(self._processes, multiprocessing.get_context("spawn"), _begin_process,
                                             (self._encode, self._context))
        return self._pool


def encode_records(encode: Encode, context: EncodeContext, records: list[Record]) -> tuple[list[Encoded], Ledger]:
    """Encode records, `preprocessing_batch_size` at a time; return the ledger of it beside them."""
    ledger = Ledger()
    context = replace(context, ledger=ledger)
    size = context.config.preprocessing_batch_size
    encoded = [one for first in range(0, len(records), size) for one in encode(records[first:first + size], context)]
    for one in encoded:
        ledger.count(one.origin.source, "used")
    return encoded, ledger


def _joined(window: Window, encoded: list[Encoded], ledger: Ledger) -> EncodedWindow:
    both = Ledger()
    both.merge(window.ledger)
    both.merge(ledger)
    return EncodedWindow(window, encoded, both)


_JOB: list[tuple[Encode, EncodeContext]] = []  # set in a child process only


def _begin_process(encode: Encode, context: EncodeContext) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RANK"] = "-1"  # the parent has encoded a sample, and said what there is to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children when it is interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _JOB.append((encode, context))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_process(records: list[Record]) -> tuple[list[Encoded], Ledger]:
    return encode_records(*_JOB[0], records)
