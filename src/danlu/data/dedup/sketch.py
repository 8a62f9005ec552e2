"""The first walk over the rows: a few numbers for each, kept in files beside the output until the clusters are known.

In memory a row costs some 40 bytes, and 8 more while a band is looked at; its bands and shingles are on disk.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import DataError
from danlu.data.clean.source import Chunk, chunk_texts
from danlu.data.dedup.clusters import ShingleSets
from danlu.data.dedup.config import DedupConfig
from danlu.data.dedup.minhash import Bands, MinHasher, choose_bands
from danlu.data.dedup.shingles import Places, normalise, shingle_sets

BAND_FILES_HINT = 1 << 16


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is kept of a chunk's rows. `bad` maps the place of a row that cannot be read to the reason."""

    path: str
    numbers: Places
    digests: NDArray[np.uint64]
    lengths: Places
    shingles: NDArray[np.uint32]
    counts: Places
    band_keys: NDArray[np.uint64]
    bad: dict[int, str]


class Sketcher:
    """Makes sketches; picklable, so that processes share one."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.bands: Bands = choose_bands(config.threshold, config.num_perm, config.recall)

    @cached_property
    def _hasher(self) -> MinHasher:
        return MinHasher(self.bands, self.config.seed)

    def __call__(self, chunk: Chunk) -> Sketch:
        config = self.config
        read = chunk_texts(chunk, config.columns, config.only, skip_bad=config.on_bad_row == "skip")
        texts = [normalise(text) if isinstance(text, str) else "" for text in read]
        digests = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
        bad = {place: text.what for place, text in enumerate(read) if isinstance(text, DataError)}
        shingles, counts = np.zeros(0, np.uint32), np.zeros(len(texts), np.int64)
        keys = np.zeros((0, len(texts)), np.uint64)
        if not config.exact_only:
            shingles, counts = shingle_sets(texts, config.ngram, config.unit)
            keys = self._hasher.band_keys(self._hasher.signatures(shingles, counts))
        return Sketch(chunk.path, np.array([row.number for row in chunk.rows]),
                      np.frombuffer(digests, np.uint64).reshape(-1, 2).T, np.array([len(text) for text in texts]),
                      shingles, counts, keys, bad)


@dataclass(slots=True)
class SketchStore:
    """The sketches of all rows: small numbers in memory, bands and shingles in files of `folder`."""

    folder: Path
    bands: Bands
    keeps_shingles: bool
    paths: list[str] = field(default_factory=list)
    files: "array[int]" = field(default_factory=lambda: array("i"))
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def fill(self, sketches: Iterator[Sketch]) -> None:
        """Take in all sketches."""
        names = [self._digest_file(), self._shingle_file(), *map(self._band_file, range(self.bands.bands))]
        opened = [name.open("wb", buffering=BAND_FILES_HINT) for name in names]
        try:
            for sketch in sketches:
                self._note(sketch)
                sketch.digests.T.tofile(opened[0])
                if self.keeps_shingles:
                    sketch.shingles.tofile(opened[1])
                for file, keys in zip(opened[2:], sketch.band_keys, strict=False):
                    keys.tofile(file)
        finally:
            for file in opened:
                file.close()

    def _note(self, sketch: Sketch) -> None:
        if not self.paths or self.paths[-1] != sketch.path:
            self.paths.append(sketch.path)
        start = len(self.numbers)
        self.bad.update({start + place: what for place, what in sketch.bad.items()})
        self.files.extend([len(self.paths) - 1] * len(sketch.numbers))
        for kept, values in ((self.numbers, sketch.numbers), (self.lengths, sketch.lengths),
                             (self.counts, sketch.counts)):
            kept.frombytes(values.astype(np.int64).tobytes())

    def digests(self) -> NDArray[np.uint64]:
        """Return (2, rows) halves of the 128-bit hashes of the normalised texts."""
        return np.fromfile(self._digest_file(), np.uint64).reshape(-1, 2).T

    def band(self, index: int) -> NDArray[np.uint64]:
        """Return the key of every row in one band."""
        return np.fromfile(self._band_file(index), np.uint64)

    def shingle_sets(self) -> ShingleSets:
        """Return the shingles of all rows, mapped from the disk."""
        path = self._shingle_file()
        values = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)
        return ShingleSets(values, np.frombuffer(self.counts, np.int64))

    def origin(self, row: int) -> str:
        """Return `file:row`."""
        return f"{self.paths[self.files[row]]}:{self.numbers[row]}"

    def _digest_file(self) -> Path:
        return self.folder / "digests"

    def _shingle_file(self) -> Path:
        return self.folder / "shingles"

    def _band_file(self, index: int) -> Path:
        return self.folder / f"band{index}"
