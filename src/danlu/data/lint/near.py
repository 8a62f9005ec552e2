"""Rows almost the same: MinHash over character 5-grams, eight bands of four (Broder 1997; Leskovec et al., ch. 3).

Two rows of Jaccard similarity s share a band with probability 1 - (1 - s^4)^8: 0.98 at 0.8, 0.06 at 0.3. Every
candidate is read again and measured exactly, so nothing is reported by chance. Memory: 40 bytes a row, at most 80 MB.
"""

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GRAM = 5
BANDS, ROWS_A_BAND = 8, 4
LONGEST_TEXT = 4000
MOST_ROWS = 2_000_000
MOST_CANDIDATES = 20_000
ALIKE = 0.8
Words = NDArray[np.uint64]

_RANDOM = np.random.default_rng(20)
_FACTORS = _RANDOM.integers(1, 2**63, BANDS * ROWS_A_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RANDOM.integers(0, 2**63, BANDS * ROWS_A_BAND, dtype=np.uint64)
_BASE = np.uint64(0x9E3779B97F4A7C15)


class Pair(NamedTuple):
    """A later row, an earlier one, and their similarity."""

    later: int
    earlier: int
    similarity: float


def grams(text: str) -> Words:
    """Return the hashed 5-grams of the first 4,000 characters, repeated ones too; of a shorter text, one."""
    letters = np.frombuffer(text[:LONGEST_TEXT].encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(letters) < GRAM:
        letters = np.pad(letters, (0, GRAM - len(letters)))
    hashed = np.zeros(len(letters) - GRAM + 1, np.uint64)
    for step in range(GRAM):
        hashed = (hashed + letters[step:len(letters) - GRAM + 1 + step]) * _BASE
        hashed ^= hashed >> np.uint64(29)
    return hashed


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two texts' 5-grams."""
    first, second = np.unique(grams(one)), np.unique(grams(other))
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)


class Sketches:
    """Band keys of rows, and the pairs that share one."""

    def __init__(self) -> None:
        self._keys = array("I")
        self._indices = array("q")
        self.is_cut = False

    def add(self, index: int, text: str) -> None:
        """Sketch a row, while there is room."""
        if len(self._indices) >= MOST_ROWS:
            self.is_cut = True
            return
        least = (grams(text)[:, None] * _FACTORS + _OFFSETS).min(axis=0).reshape(BANDS, ROWS_A_BAND)
        keys = least[:, 0]
        for step in range(1, ROWS_A_BAND):
            keys = (keys ^ (least[:, step] >> np.uint64(step))) * _BASE
        self._keys.extend((keys >> np.uint64(32)).tolist())
        self._indices.append(index)

    def pairs(self, hashes: Words, read: Callable[[int], str]) -> Iterator[Pair]:
        """Yield rows at least 0.8 alike but not equal; `hashes` tells equal rows, `read` gives a row's text."""
        reported: set[int] = set()
        for later, earlier in self._candidates(hashes):
            if later in reported:
                continue
            alike = similarity(read(later), read(earlier))
            if alike >= ALIKE:
                reported.add(later)
                yield Pair(later, earlier, alike)

    def _candidates(self, hashes: Words) -> list[tuple[int, int]]:
        if not len(self._indices):
            return []
        indices = np.frombuffer(self._indices, np.int64)
        # Of rows that are equal only the first is compared.
        _, first = np.unique(hashes[indices], return_index=True)
        first = np.sort(first)
        keys = np.frombuffer(self._keys, np.uint32).reshape(-1, BANDS)[first]
        indices = indices[first]
        found: set[tuple[int, int]] = set()
        for band in range(BANDS):
            found.update(_sharing(keys[:, band], indices))
            if len(found) >= MOST_CANDIDATES:
                self.is_cut = True
                break
        return sorted(found)[:MOST_CANDIDATES]


def _sharing(keys: NDArray[np.uint32], indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (later, first) for rows of equal key."""
    _, first, where = np.unique(keys, return_index=True, return_inverse=True)
    later = np.flatnonzero(np.arange(len(keys)) != first[where])[:MOST_CANDIDATES]
    for place in later.tolist():
        yield int(indices[place]), int(indices[first[where[place]]])
