"""Encoding a whole data set to disk: in batches, in one process or several, with bounded memory."""

import gc
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from danlu.core.console import notice, say
from danlu.core.records import Origin
from danlu.data.encode import EncodeContext
from danlu.data.ledger import Ledger
from danlu.data.loader import Records
from danlu.data.ragged import Ragged, RaggedWriter
from danlu.templates import Encoded

COLUMNS = {"ids": np.int32, "trained": np.bool_, "weights": np.float32, "turns": np.int64, "origin": np.int64,
           "facts": np.float32, "notes": np.uint8}
SECONDS_BETWEEN_LINES = 5.0
FEWEST_ROWS_A_PROCESS = 1000
MOST_UNASKED = 8

Encode = Callable[[Sequence[Any], EncodeContext], list[Encoded]]


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of the encoding needs."""

    records: Records
    encode: Encode
    context: EncodeContext
    folder: Path


class EncodedOnDisk(Sequence[Encoded]):
    """Encoded records in the order of the data set, mapped from one or several shards."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._sources = [json.loads((shard / "sources.json").read_text("utf-8")) for shard in shards]
        self._columns = [{name: Ragged(shard, name, kind) for name, kind in COLUMNS.items()} for shard in shards]
        self._ends = list(accumulate(len(columns["ids"]) for columns in self._columns))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (self._ends[shard - 1] if shard else 0)
        columns = self._columns[shard]
        source, number = columns["origin"][row].tolist()
        weights = columns["weights"][row]
        turns = tuple((start, answer, end) for start, answer, end in columns["turns"][row].reshape(-1, 3).tolist())
        return Encoded(columns["ids"][row], columns["trained"][row], weights if len(weights) else None, turns,
                       Origin(self._sources[shard][source], number), tuple(columns["facts"][row].tolist()),
                       bytes(columns["notes"][row]).decode())


    def lengths(self) -> list[int]:
        """Return the number of tokens of every record."""
        return [int(length) for columns in self._columns for length in columns["ids"].lengths()]

    def origins(self) -> Iterator[tuple[str, int]]:
        """Yield the file and row of every record."""
        for sources, columns in zip(self._sources, self._columns, strict=True):
            for source, row in columns["origin"].flat.reshape(-1, 2).tolist():
                yield sources[source], row


def encode_to_disk(records: Records, encode: Encode, context: EncodeContext, folder: Path) -> EncodedOnDisk:
    """Encode all records into shards under `folder`; the context's ledger gets every entry, in order."""
    job = Job(records, encode, context, folder)
    processes = _processes(len(records), context)
    bounds = [len(records) * step // processes for step in range(processes + 1)]
    ranges = [(index, start, end) for index, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))]
    if processes == 1:
        ledgers = [_encode_shard(job, *ranges[0], is_talking=True)]
    else:
        method = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, method, _begin_process, (job,)) as pool:
            ledgers = [Ledger.from_dict(found) for found in pool.map(_encode_in_process, ranges)]
    for ledger in ledgers:
        context.ledger.merge(ledger)
    return EncodedOnDisk([folder / str(index) for index, _, _ in ranges])


def _processes(rows: int, context: EncodeContext) -> int:
    asked = context.config.preprocessing_num_workers
    if "fork" not in multiprocessing.get_all_start_methods():
        if asked is not None and asked > 1:
            notice("preprocessing_num_workers has no effect on this system: one process encodes")
        return 1
    return max(1, min(asked or _cores(), rows // FEWEST_ROWS_A_PROCESS))


def _cores() -> int:
    """Return how many processes encode unasked: one a processor that this one may use, MOST_UNASKED at most.

    One where forking is not the system's own way (macOS), as libraries there do not expect it.
    """
    return min(len(os.sched_getaffinity(0)), MOST_UNASKED) if sys.platform == "linux" else 1


def _encode_shard(job: Job, index: int, start: int, end: int, *, is_talking: bool) -> Ledger:
    ledger, sources = Ledger(), dict[str, int]()
    context = replace(job.context, ledger=ledger)
    shard, size = job.folder / str(index), context.config.preprocessing_batch_size
    last_line = time.monotonic()
    with RaggedWriter(shard, COLUMNS) as writer, _old_objects_uncollected():
        for first in range(start, end, size):
            batch = [job.records[row] for row in range(first, min(first + size, end))]
            for one in job.encode(batch, context):
                ledger.count(one.origin.source, "used")
                writer.append(
                    ids=one.input_ids, trained=one.trained, weights=() if one.weights is None else one.weights,
                    turns=np.array(one.turns, np.int64).reshape(-1), facts=one.facts,
                    notes=np.frombuffer(one.note.encode(), np.uint8),
                    origin=(sources.setdefault(one.origin.source, len(sources)), one.origin.row))
            if is_talking and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(f"encoding: {min(first + size, end)} of {end} records")
    (shard / "sources.json").write_text(json.dumps(list(sources)), "utf-8")
    return ledger


@contextmanager
def _old_objects_uncollected() -> Iterator[None]:
    """Spare the cyclic collector all that was made before: encoding makes many objects, and old ones outlive it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_JOB: list[Job] = []  # set in a child process only, by fork: nothing of the job is pickled


def _begin_process(job: Job) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _JOB.append(job)


def _encode_in_process(one_range: tuple[int, int, int]) -> dict[str, Any]:
    return _encode_shard(_JOB[0], *one_range, is_talking=one_range[0] == 0).to_dict()
