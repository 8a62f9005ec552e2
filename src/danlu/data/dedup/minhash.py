"""MinHash signatures (Broder 1997) and the bands of locality-sensitive hashing (Indyk and Motwani 1998), in numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.data.dedup.shingles import Hashes, Places, mixed

BLOCK = 32_768
FEW_TEXTS = 16


@dataclass(frozen=True, slots=True)
class Bands:
    """Signatures of `bands * rows` values; a pair is a candidate when all `rows` values of one band agree."""

    bands: int
    rows: int

    @property
    def num_perm(self) -> int:
        """The length of a signature."""
        return self.bands * self.rows

    def chance(self, similarity: float) -> float:
        """Return the probability that a pair of this Jaccard similarity is a candidate: 1 - (1 - s^r)^b."""
        return float(1 - (1 - similarity ** self.rows) ** self.bands)


def choose_bands(threshold: float, num_perm: int, recall: float) -> Bands:
    """Return the most selective bands that still find a pair at the threshold with probability `recall`.

    With more rows in a band fewer pairs are candidates by chance; similarity is checked afterwards in any case.
    """
    possible = [Bands(num_perm // rows, rows) for rows in range(1, num_perm + 1)]
    found = [bands for bands in possible if bands.chance(threshold) >= recall]
    return found[-1] if found else possible[0]


class MinHasher:
    """Signatures: the least value of (a*x + b) mod 2^32 over a text's shingles x, for `num_perm` pairs (a, b)."""

    def __init__(self, bands: Bands, seed: int) -> None:
        self.bands = bands
        random = np.random.default_rng(seed)
        # An odd factor makes each map a permutation of the 32-bit numbers.
        self._a = random.integers(0, 1 << 32, bands.num_perm, np.uint32) | np.uint32(1)
        self._b = random.integers(0, 1 << 32, bands.num_perm, np.uint32)

    def signatures(self, shingles: NDArray[np.uint32], counts: Places) -> NDArray[np.uint32]:
        """Return (texts, num_perm) values; a text without shingles has the largest value everywhere.

        Texts of like length are hashed together: a shorter one is filled up with its own first shingle, which changes
        no minimum.
        """
        result = np.full((len(counts), self.bands.num_perm), 0xFFFFFFFF, np.uint32)
        first = np.cumsum(counts) - counts
        order = np.argsort(counts, kind="stable")
        order = order[counts[order] > 0]
        start = 0
        while start < len(order):
            start, chosen = self._next_block(order, counts, start)
            width = int(counts[chosen].max())
            place = np.arange(width)[None, :]
            place = np.where(place < counts[chosen][:, None], place, 0) + first[chosen][:, None]
            result[chosen] = self._minima(shingles[place])
        return result

    def _next_block(self, order: Places, counts: Places, start: int) -> tuple[int, Places]:
        """Return where the next block starts, and the texts of this one: of like length, BLOCK values in all."""
        least = int(counts[order[start]])
        end = start + max(1, BLOCK // least)
        chosen = order[start:end]
        chosen = chosen[counts[chosen] <= least + max(4, least // 4)]
        return start + len(chosen), chosen

    def _minima(self, block: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return (texts, num_perm) minima of a (texts, width) block."""
        minima = np.empty((self.bands.num_perm, len(block)), np.uint32)
        # The long side is the inner one, which numpy computes with vector instructions.
        axis = 1 if len(block) < FEW_TEXTS else 0
        values = block if axis else np.ascontiguousarray(block.T)
        hashed = np.empty_like(values)
        for index, (a, b) in enumerate(zip(self._a, self._b, strict=True)):
            np.multiply(values, a, out=hashed)
            np.add(hashed, b, out=hashed)
            np.minimum.reduce(hashed, axis=axis, out=minima[index])
        return minima.T

    def band_keys(self, signatures: NDArray[np.uint32]) -> Hashes:
        """Return (bands, texts) 64-bit keys, equal when all values of the band are."""
        values = signatures.reshape(len(signatures), self.bands.bands, self.bands.rows).astype(np.uint64)
        keys = np.zeros(values.shape[:2], np.uint64)
        for row in range(self.bands.rows):
            keys = mixed(keys + values[:, :, row] + np.uint64(0x9E3779B97F4A7C15))
        return np.ascontiguousarray(keys.T)
