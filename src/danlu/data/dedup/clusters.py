"""From keys to clusters: rows with an equal key are candidates, similar ones are joined (union-find, Tarjan 1975)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from danlu.data.dedup.shingles import Places

PAIRS_AT_A_TIME = 8192
ROUNDS = 64


class UnionFind:
    """Sets of rows; the smallest row of a set is its root."""

    def __init__(self, number: int) -> None:
        self.parent = np.arange(number, dtype=np.int64)

    def find(self, row: int) -> int:
        """Return the root of the row's set."""
        parent = self.parent
        while (above := int(parent[row])) != row:
            parent[row] = parent[above]
            row = int(parent[row])
        return row

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        first, second = sorted((self.find(one), self.find(other)))
        self.parent[second] = first

    def roots(self) -> Places:
        """Return the root of every row."""
        while True:
            above = self.parent[self.parent]
            if np.array_equal(above, self.parent):
                return self.parent
            self.parent = above


class ShingleSets:
    """The sorted shingles of each row, in a file that is mapped and not held: `counts` says how many each row has."""

    def __init__(self, values: NDArray[np.uint32], counts: Places) -> None:
        self.values, self.counts = values, counts
        self.first = np.cumsum(counts) - counts

    def jaccard(self, one: Places, other: Places) -> NDArray[np.float64]:
        """Return |A and B| / |A or B| of each pair of rows; two rows without shingles have 0."""
        parts = [self._some(one[start:start + PAIRS_AT_A_TIME], other[start:start + PAIRS_AT_A_TIME])
                 for start in range(0, len(one), PAIRS_AT_A_TIME)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _some(self, one: Places, other: Places) -> NDArray[np.float64]:
        pairs = np.arange(len(one), dtype=np.uint64) << np.uint64(32)
        keys = np.concatenate([self._keyed(one, pairs), self._keyed(other, pairs)])
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        common = np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=len(one))
        union = self.counts[one] + self.counts[other] - common
        similarity: NDArray[np.float64] = common / np.maximum(union, 1)
        return similarity

    def _keyed(self, rows: Places, pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        counts = self.counts[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        values = self.values[np.repeat(self.first[rows], counts) + within]
        return values.astype(np.uint64) | np.repeat(pairs, counts)


def join_equal(keys: NDArray[np.uint64], rows: Places, sets: UnionFind) -> None:
    """Join rows whose keys, (columns, rows) values, are equal in all columns."""
    order = np.lexsort(keys[::-1])
    is_new = np.ones(len(order), bool)
    is_new[1:] = (keys[:, order[1:]] != keys[:, order[:-1]]).any(axis=0)
    leaders = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    for leader, row in zip(rows[leaders[~is_new]].tolist(), rows[order[~is_new]].tolist(), strict=True):
        sets.join(leader, row)


def join_similar(keys: NDArray[np.uint64], rows: Places, sets: UnionFind, shingles: ShingleSets | None,
                 threshold: float) -> int:
    """Join candidates of one band, with `shingles` those of this Jaccard similarity only; return the pairs compared.

    In a group of equal keys every row is compared with the first, and, when unlike, with the one before it; those
    unlike the first form a group of their own, and so on. So a group of chance acquaintances loses no pair to its
    first row, and a chain of copies of copies is followed.
    """
    compared = 0
    for _ in range(ROUNDS):
        leaders, befores, others = _groups(keys)
        if not len(others):
            break
        tried = 0
        for partners in (leaders, befores):
            roots = sets.roots()
            is_apart = roots[rows[partners]] != roots[rows[others]]
            tried += _join_alike(rows[partners[is_apart]], rows[others[is_apart]], sets, shingles, threshold)
        compared += tried
        roots = sets.roots()
        unlike = others[roots[rows[leaders]] != roots[rows[others]]]
        keys, rows = keys[unlike], rows[unlike]
    return compared


def _join_alike(one: Places, other: Places, sets: UnionFind, shingles: ShingleSets | None, threshold: float) -> int:
    """Join the pairs that are similar enough; return how many were compared."""
    if shingles is not None:
        is_alike = shingles.jaccard(one, other) >= threshold
        one, other, number = one[is_alike], other[is_alike], len(one)
    else:
        number = len(one)
    for first, second in zip(one.tolist(), other.tolist(), strict=True):
        sets.join(first, second)
    return number


def _groups(keys: NDArray[np.uint64]) -> tuple[Places, Places, Places]:
    """Return, for each place whose key an earlier one has: the first such place, the last such place, the place."""
    order = np.argsort(keys, kind="stable")
    is_new = np.ones(len(order), bool)
    is_new[1:] = keys[order[1:]] != keys[order[:-1]]
    leaders = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    return leaders[~is_new], order[np.flatnonzero(~is_new) - 1], order[~is_new]


def members(roots: Places) -> Iterator[Places]:
    """Yield the rows of each cluster of two or more, in ascending order."""
    order = np.argsort(roots, kind="stable")
    borders = np.flatnonzero(np.diff(roots[order])) + 1
    yield from (cluster for cluster in np.split(order, borders) if len(cluster) > 1)
