"""Which beginnings the segments of an example share, so that a prompt with several answers is computed once.

A tree of depth two: a prefix, and behind it one branch for each segment that begins with it. Plain numpy; knows no
model.

Shape legend: T tokens of the plain stream, C tokens that are computed, S segments, N blocks (prefixes, branches and
segments that share nothing).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

SHORTEST_PREFIX = 8
SMALLEST_SAVING = 1 / 16  # of a group's tokens: below it the wider masks of branches cost what the tokens save


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """A stream whose repeated beginnings are left out.

    kept     (C,)  tokens of the plain stream that are computed, in order
    places   (T,)  where among them each token of the plain stream is found
    lengths  (N,)  tokens in each block
    parents  (N,)  the block that a branch continues; -1 for a block that starts at position 0
    """

    kept: IntArray
    places: IntArray
    lengths: tuple[int, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Segments first <= s < end that share their first `prefix` tokens; a prefix of 0 shares nothing."""

    first: int
    end: int
    prefix: int


def share_prefixes(ids_T: IntArray, lengths: Sequence[int], owners: Sequence[int]) -> PrefixTree | None:
    """Return the tree of a stream's segments, none of them empty; None when no example has a beginning to share."""
    groups = list(_groups(ids_T, lengths, owners))
    if not any(group.prefix for group in groups):
        return None
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    blocks: list[int] = []
    parents: list[int] = []
    places = np.zeros(len(ids_T), np.int64)
    is_kept = np.ones(len(ids_T), np.bool_)
    at = 0
    for group in groups:
        root, shared = at, group.prefix
        if shared:
            blocks.append(shared)
            parents.append(-1)
            at += shared
        parent = len(blocks) - 1 if shared else -1
        for which in range(group.first, group.end):
            start, own = starts[which], lengths[which] - shared
            places[start:start + shared] = np.arange(root, root + shared)
            places[start + shared:start + lengths[which]] = np.arange(at, at + own)
            is_kept[start:start + shared] = which == group.first
            blocks.append(own)
            parents.append(parent)
            at += own
    return PrefixTree(np.flatnonzero(is_kept), places, tuple(blocks), tuple(parents))


def _groups(ids_T: IntArray, lengths: Sequence[int], owners: Sequence[int]) -> Iterator[Group]:
    """Cut the segments into runs that share a beginning; a run grows while that saves more tokens."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    segments = [ids_T[start:start + n] for start, n in zip(starts, lengths, strict=False)]
    first = 0
    while first < len(segments):
        end, prefix = first + 1, 0
        while end < len(segments) and owners[end] == owners[first]:
            # each branch keeps a token, so that the last token of a segment is always its own
            shared = min(common_prefix(segments[first], segments[end]), lengths[first] - 1, lengths[end] - 1,
                         prefix or len(segments[first]))
            if shared < SHORTEST_PREFIX or shared * (end - first) <= prefix * (end - first - 1):
                break
            end, prefix = end + 1, shared
        if prefix * (end - first - 1) < SMALLEST_SAVING * sum(lengths[first:end]):
            end, prefix = first + 1, 0
        yield Group(first, end, prefix)
        first = end


def common_prefix(one: IntArray, other: IntArray) -> int:
    """Return how many first tokens two segments share."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size
