"""From a configuration to a stream of examples, and to the rows set aside for evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import say
from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Record
from danlu.data import fingerprint
from danlu.data.config import DataConfig
from danlu.data.dataset import make_key
from danlu.data.encode import EncodeContext
from danlu.data.ledger import Ledger
from danlu.data.loader import Records, SourceRows, open_sources
from danlu.data.mixing import sample
from danlu.data.registry import Source, find_sources
from danlu.data.row_file import RowFile
from danlu.data.streaming.encoding import WindowEncoder, encode_records
from danlu.data.streaming.estimate import estimate_epoch
from danlu.data.streaming.mixer import Mixer
from danlu.data.streaming.row_index import RowIndex, index_of
from danlu.data.streaming.row_stream import RowStream, ShuffleBuffer
from danlu.data.streaming.set_walk import SetWalk
from danlu.data.streaming.token_stream import TokenStream


@dataclass(frozen=True, slots=True)
class Order:
    """What decides the order of a stream besides the data: seed of mixing, seed of shuffling, whether to shuffle."""

    mixing_seed: int
    shuffling_seed: int
    shuffles: bool = True


@dataclass(frozen=True, slots=True)
class OpenedSet:
    """One data set with the index of each of its files, and the rows that the configuration selects."""

    rows: SourceRows
    indexes: tuple[RowIndex, ...]
    wanted: NDArray[np.int64] | range

    def walk(self, owner: int, start: int = 0) -> SetWalk:
        """Walk through the selected rows but the first `start`."""
        return SetWalk(owner, self.rows, self.indexes, self.wanted[start:])


class HeldOut:
    """The records set aside for evaluation, in memory; one part of `Records`."""

    def __init__(self, source: Source, files: tuple[RowFile, ...], records: Sequence[Record]) -> None:
        self.source, self.files, self._records = source, files, records

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def open_stream(config: DataConfig, stage_cls: Any, context: EncodeContext, order: Order,
                record: type[Record] | None = None) -> tuple[TokenStream, Records | None]:
    """Return the training stream of a configuration, and the first `val_size` rows that it leaves out.

    `record`: the kind of record, where the stage's own does not say it.
    Counts the rows of files it has not met, and encodes a sample. Errors: ConfigError when no data is named,
    DataError for damaged files and for a sample without a usable row.
    """
    sources = find_sources(config, "train")
    if not sources:
        raise ConfigError("no train data is named", where="dataset or train_file", fix="set dataset or train_file")
    sets = [_open_set(rows, config, order.mixing_seed)
            for rows in open_sources(sources, record or stage_cls.record, config, Ledger())]
    held = _held_rows(sets, config, order.mixing_seed)
    walks = [one.walk(owner, held[owner]) for owner, one in enumerate(sets)]
    mixer = _mixer([len(walk) for walk in walks], config, order.mixing_seed)
    buffer = ShuffleBuffer(config.buffer_size if order.shuffles else 1, order.shuffling_seed)
    rows = mixer.rows_of_an_epoch()
    encode = partial(encode_records, stage_cls.encode, context)
    estimate = estimate_epoch(walks, rows, lambda records: encode(records)[0], stage_cls.arrange, config)
    say(f"data {', '.join(one.rows.source.name for one in sets)}: {sum(rows):,} rows an epoch, streamed; "
        f"{'' if estimate.is_exact else 'about '}{estimate.examples:,} examples, {estimate.tokens:,} tokens"
        + ("" if estimate.is_exact else f" (from a sample of {estimate.sampled:,} rows)"))
    key = _data_key(sets, config, order)
    encoder = WindowEncoder(stage_cls.encode, context, config.preprocessing_num_workers or 0)
    stream = TokenStream(RowStream(walks, mixer, buffer), encoder, stage_cls.arrange, config, estimate,
                         _fingerprint(key, stage_cls, context))
    return stream, _held_out(sets, held, config, order.mixing_seed, key) if any(held) else None


def _open_set(rows: SourceRows, config: DataConfig, seed: int) -> OpenedSet:
    indexes = tuple(index_of(file, anew=config.overwrite_cache) for file in rows.files)
    count, limit = sum(index.count for index in indexes), config.max_samples
    if not count:
        raise rows.no_rows()
    if rows.source.num_samples is None:
        return OpenedSet(rows, indexes, range(count)[:limit])
    return OpenedSet(rows, indexes, np.sort(sample(count, rows.source.num_samples, seed)[:limit]).ravel())


def _mixer(sizes: Sequence[int], config: DataConfig, seed: int) -> Mixer:
    return Mixer(sizes, config.mix_strategy, config.interleave_probs, seed)


def _mixed(sets: Sequence[OpenedSet], config: DataConfig, seed: int) -> Iterator[int]:
    mixer = _mixer([len(one.wanted) for one in sets], config, seed)
    return iter(lambda: -1 if (owner := mixer.next()) is None else owner, -1)


def _held_rows(sets: Sequence[OpenedSet], config: DataConfig, seed: int) -> list[int]:
    """Return how many rows of each set are among the first `val_size` of the mixed order."""
    held = [0] * len(sets)
    for owner in islice(_mixed(sets, config, seed), int(config.val_size)):
        held[owner] += 1
    for one, count in zip(sets, held, strict=True):
        if count >= len(one.wanted):
            raise ConfigError(f"{int(config.val_size)} takes all {len(one.wanted)} rows of {one.rows.source.name}",
                              where="val_size", fix="choose a smaller val_size, or mix the sets (mix_strategy)")
    return held


def _held_out(sets: Sequence[OpenedSet], held: Sequence[int], config: DataConfig, seed: int, key: str) -> Records:
    walks = [one.walk(owner) for owner, one in enumerate(sets)]
    found: list[list[Record]] = [[] for _ in sets]
    places, ledger = list[tuple[int, int]](), Ledger()
    for walk in walks:
        walk.rows.ledger = ledger
    for owner in islice(_mixed(sets, config, seed), sum(held)):
        record = walks[owner].next()[1]
        if record is not None:
            places.append((owner, len(found[owner])))
            found[owner].append(record)
    if not places:
        raise DataError("none of the rows set aside can be used", where="val_size", fix="mend the data's first rows")
    parts = [HeldOut(one.rows.source, one.rows.files, records) for one, records in zip(sets, found, strict=True)]
    order = np.array(places, np.int64)
    return Records(parts, lambda: order, f"{key}-eval", "eval", ledger)


def _data_key(sets: Sequence[OpenedSet], config: DataConfig, order: Order) -> str:
    seen = [[[index.digest for index in one.indexes], one.rows.source.name, one.rows.source.formatting,
             repr(one.rows.source.layout), one.rows.source.num_samples] for one in sets]
    return fingerprint.of_values(
        seen, config.max_samples, config.mix_strategy, config.interleave_probs, int(config.val_size),
        config.on_bad_row, config.buffer_size if order.shuffles else 1, order.mixing_seed, order.shuffling_seed)


def _fingerprint(data_key: str, stage_cls: Any, context: EncodeContext) -> str:
    """Return what decides the examples and their order; the code that makes them is no part of it."""
    key = make_key(Records((), lambda: np.zeros((0, 2), np.int64), data_key, "train", Ledger()), stage_cls, context)
    return fingerprint.of_values("stream", key.data, key.template, key.tokenizer, key.options)
