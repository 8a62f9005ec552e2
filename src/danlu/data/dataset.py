"""The prepared data set: examples as flat arrays mapped from disk, found again by what they were made from.

The key is content + template + tokenizer + options + code: an edited file, template or tokenizer never meets a stale
copy, and an unchanged run starts at once.
"""

import fcntl
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from danlu.core.console import is_main_process, notice, say
from danlu.core.errors import ConfigError, DataError
from danlu.core.stream import Example
from danlu.data import fingerprint
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext
from danlu.data.ledger import Ledger
from danlu.data.loader import Records
from danlu.data.packing import Arranged
from danlu.data.prepare import Encode, EncodedOnDisk, encode_to_disk
from danlu.data.ragged import Ragged, RaggedWriter
from danlu.templates import Encoded

COLUMNS = {"ids": np.int32, "trained": np.bool_, "weights": np.float32, "segments": np.int32, "members": np.int64,
           "origins": np.int64, "facts": np.float32, "notes": np.uint8}
CONTENT = ("ids", "trained", "weights", "segments", "facts", "notes")
META = "meta.json"
MOST_ORIGINS = 8
WITHOUT_EFFECT = {
    "dataset", "eval_dataset", "train_file", "eval_file", "dataset_dir", "overwrite_cache", "tokenized_path",
    "preprocessing_batch_size", "preprocessing_num_workers", "val_size", "eval_on_each_dataset", "streaming",
    "buffer_size", "template", "max_samples", "mix_strategy", "interleave_probs", "split"}


class ArrangingStage(Protocol):
    """What is asked of a stage: how records become tokens, and tokens examples."""

    encode: Encode

    def arrange(self, encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
        """Turn encoded records into training examples."""


@dataclass(frozen=True, slots=True)
class Key:
    """Hashes of everything a prepared set depends on; named, so that a mismatch can be told."""

    data: str
    template: str
    tokenizer: str
    options: str
    code: str

    @property
    def digest(self) -> str:
        """Name of the set's folder."""
        return fingerprint.of_values(asdict(self))


class TokenDataset(Sequence[Example]):
    """Examples mapped from disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text("utf-8"))
        self._columns = {name: Ragged(folder, name, kind) for name, kind in COLUMNS.items()}
        self.fingerprint: str = self.meta["fingerprint"]
        self.num_tokens: int = self.meta["num_tokens"]
        self.num_trained: int = self.meta["num_trained"]
        self.ledger = Ledger.from_dict(self.meta["ledger"])

    def __len__(self) -> int:
        return len(self._columns["ids"])

    def __getitem__(self, index: Any) -> Any:
        """Return Example `index`, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        columns = self._columns
        weights = columns["weights"][index]
        return Example(columns["ids"][index].astype(np.int64), columns["trained"][index],
                       weights if len(weights) else None, tuple(columns["segments"][index].tolist()), index,
                       tuple(columns["facts"][index].tolist()), note=bytes(columns["notes"][index]).decode())

    @property
    def lengths(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Tokens in each example."""
        return self._columns["ids"].lengths()

    @property
    def facts(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """What the stage knows of each example beside its tokens, (N, F)."""
        flat = self._columns["facts"].flat
        return np.asarray(flat).reshape(len(self), -1)

    @property
    def max_token_id(self) -> int:
        """The largest token id of the set."""
        return int(self.meta["max_token_id"])

    def longest(self) -> tuple[int, str]:
        """Return the tokens of the longest text that stands by itself, and the origin of its example."""
        segments = self._columns["segments"]
        place = int(np.argmax(segments.flat))
        return int(segments.flat[place]), self.origin(int(np.searchsorted(segments.ends, place, side="right")))

    def origin(self, index: int) -> str:
        """Return `file:row` of an example; of a packed one, those of its first records."""
        rows = self.origins(index)
        more = f" and {len(rows) - MOST_ORIGINS} more" if len(rows) > MOST_ORIGINS else ""
        return ", ".join(rows[:MOST_ORIGINS]) + more

    def origins(self, index: int) -> list[str]:
        """Return `file:row` of every record that an example is made of."""
        rows = [self._columns["origins"][one].tolist() for one in self._columns["members"][index].tolist()]
        return [f"{self.meta['sources'][source]}:{row}" for source, row in rows]

    def find_ids(self, limit: int) -> list[tuple[int, str]]:
        """Return the distinct token ids of at least `limit`, each with the origin of an example that has it."""
        flat = self._columns["ids"].flat
        places = np.flatnonzero(flat >= limit) if self.max_token_id >= limit else np.zeros(0, np.int64)
        ids, first = np.unique(flat[places], return_index=True)
        owners = np.searchsorted(self._columns["ids"].ends, places[first], side="right")
        return [(int(one), self.origin(int(owner))) for one, owner in zip(ids, owners, strict=True)]


def build_dataset(records: Records, stage_cls: Any, context: EncodeContext) -> TokenDataset:
    """Return the prepared set of a stage, from the cache when nothing that matters has changed.

    Errors: DataError for bad rows or when nothing is left to train on; ConfigError when `tokenized_path` holds a set
    made from something else.
    """
    key = make_key(records, stage_cls, context)
    if context.config.tokenized_path:
        folder = Path(context.config.tokenized_path) / _part_name(records)
        if (folder / META).is_file():
            return _load_saved(folder, key, has_data=bool(records.fingerprint))
        if not records.fingerprint:
            raise ConfigError(f"no prepared set in {folder}", where="tokenized_path", fix="name the data: set dataset")
    else:
        folder = cache_root() / "tokenized" / fingerprint.of_values(key.digest, records.files)
    with locked(folder):
        if not (folder / META).is_file() or (context.config.overwrite_cache and is_main_process()):
            _prepare(records, stage_cls, context, folder, key)
        else:
            say(f"data {', '.join(records.names)}: encoded before, read from {folder}")
    dataset = TokenDataset(folder)
    dataset.ledger.announce()
    return dataset


def make_key(records: Records, stage_cls: Any, context: EncodeContext) -> Key:
    """Return the hashes that decide whether a prepared set may be used again."""
    template, tokenizer = context.template, context.tokenizer
    stage = [stage_cls.__qualname__, fingerprint.of_files([Path(inspect.getfile(stage_cls))])]
    looks = None if template is None else [type(template).__qualname__, template.name, template.jinja(tokenizer)]
    options = context.config.model_dump(exclude=WITHOUT_EFFECT)
    return Key(data=records.fingerprint, template=fingerprint.of_values(looks),
               tokenizer=fingerprint.of_tokenizer(tokenizer), options=fingerprint.of_values(options, stage),
               code=fingerprint.of_code())


def cache_root() -> Path:
    """Return the folder of caches: DANLU_CACHE, or `~/.cache/danlu`."""
    return Path(os.environ.get("DANLU_CACHE") or Path.home() / ".cache" / "danlu")


def _part_name(records: Records) -> str:
    return records.which if records.which == "train" else f"eval-{fingerprint.of_values(records.names)[:8]}"


def _load_saved(folder: Path, key: Key, *, has_data: bool) -> TokenDataset:
    dataset = TokenDataset(folder)
    found = dataset.meta["key"]
    differing = [part for part, value in asdict(key).items() if found[part] != value]
    if "code" in differing:
        notice(f"{folder} was prepared by another version of danlu")
    real = [part for part in differing if part != "code" and (part != "data" or has_data)]
    if real:
        changed = " and ".join(f"other {part}" if part in ("data", "options") else f"another {part}" for part in real)
        raise ConfigError(f"the prepared set in {folder} was made with {changed}",
                          where="tokenized_path", fix="give another tokenized_path, or remove this folder")
    say(f"data: {len(dataset)} prepared examples, read from {folder}")
    return dataset


def _prepare(records: Records, stage_cls: Any, context: EncodeContext, folder: Path, key: Key) -> None:
    """Encode, arrange and write beside the final name, then rename."""
    context = replace(context, ledger=Ledger())
    partial = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        encoded = encode_to_disk(records, stage_cls.encode, context, partial / "encoded")
        ledger = Ledger()
        ledger.merge(records.ledger)
        ledger.merge(context.ledger)
        if not len(encoded):
            raise DataError("nothing to train on is left of the data: " + "; ".join(ledger.lines()),
                            where=", ".join(records.names), fix="raise cutoff_len, or look at the reasons above")
        meta = _write_examples(stage_cls.arrange(encoded, context.config), encoded, partial)
        meta |= {"key": asdict(key), "ledger": ledger.to_dict(), "names": records.names}
        del encoded
        shutil.rmtree(partial / "encoded")
        (partial / META).write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_examples(examples: Sequence[Example], encoded: EncodedOnDisk, folder: Path) -> dict[str, Any]:
    sources: dict[str, int] = {}
    tokens = trained = max_id = 0
    with RaggedWriter(folder, COLUMNS) as writer:
        for source, row in encoded.origins():
            writer.append(origins=(sources.setdefault(source, len(sources)), row))
        for index, example in enumerate(examples):
            starts = np.cumsum(example.lengths) - example.lengths
            tokens += len(example.input_ids)
            trained += int(example.trained.sum() - example.trained[starts].sum())
            max_id = max(max_id, int(example.input_ids.max()))
            members = examples.members(index) if isinstance(examples, Arranged) else (index,)
            writer.append(
                ids=example.input_ids, trained=example.trained, segments=example.lengths, members=members,
                facts=example.facts, notes=np.frombuffer(example.note.encode(), np.uint8),
                weights=() if example.weights is None else example.weights)
    # A run resumes on the same tokens, wherever they came from: the code that made them is no part of this.
    seen = fingerprint.of_files(folder / f"{name}{end}" for name in CONTENT for end in (".bin", ".ends.bin"))
    return {"sources": list(sources), "num_tokens": tokens, "num_trained": trained, "max_token_id": max_id,
            "fingerprint": seen}


def _move(partial: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare a set; the others wait and then find it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
