"""The flat token stream: the one layout of a batch. Plain numpy; knows no model, no template, no device.

Shape legend: T tokens of the stream, S segments, R supervised rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row of a data set: one segment, or several that never see each other (packing).

    input_ids  (T,) int    token ids
    trained    (T,) bool   True where the token is a target of the loss
    weights    (T,) float  scale of each token's loss; None means 1 everywhere
    lengths    (S,)        tokens in each segment; they sum to T
    index      position in the data set, so that an error can name the row
    facts      (F,)        numbers beside the tokens: a label, reference log-probabilities; the stage knows their order
    tracks     (K, T)      numbers of each token, old log-probabilities and advantages for instance; None: K is 0
    note                   what the stage knows in words, as JSON: the messages a reward reads
    """

    input_ids: IntArray
    trained: BoolArray
    weights: FloatArray | None = None
    lengths: tuple[int, ...] = ()
    index: int = -1
    facts: tuple[float, ...] = ()
    tracks: FloatArray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.lengths:
            object.__setattr__(self, "lengths", (len(self.input_ids),))
        if not len(self.input_ids) == len(self.trained) == sum(self.lengths):
            raise ValueError(
                f"ids {len(self.input_ids)}, trained {len(self.trained)} and segments {self.lengths} disagree")


@dataclass(frozen=True, slots=True)
class Stream:
    """A micro-batch without padding.

    input_ids    (T,)    all segments one behind the other
    position_ids (T,)    restart at 0 in each segment
    cu_seqlens   (S+1,)  where segments start and end
    loss_rows    (R,)    positions whose next token is a target
    loss_targets (R,)    those next tokens
    loss_weights (R,)    scale of each row's loss
    owners       (S,)    which example of the batch a segment belongs to
    indices      (B,)    data-set positions of the examples
    facts        (B, F)  what the stage knows of each example beside its tokens
    tracks       (K, R)  what the stage knows of each supervised row's target
    """

    input_ids: IntArray
    position_ids: IntArray
    cu_seqlens: IntArray
    loss_rows: IntArray
    loss_targets: IntArray
    loss_weights: FloatArray
    owners: IntArray
    indices: tuple[int, ...] = field(default=())
    facts: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    tracks: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))


def flatten(examples: Sequence[Example]) -> Stream:
    """Lay examples end to end. The shift by one (row t predicts token t+1) happens here and nowhere else.

    A segment's first token is never a target: nothing before it may predict it.
    """
    ids = np.concatenate([e.input_ids for e in examples]).astype(np.int64)
    trained = np.concatenate([e.trained for e in examples])
    weights = np.concatenate([
        np.ones(len(e.input_ids), np.float32) if e.weights is None else e.weights for e in examples])
    lengths = np.array([n for e in examples for n in e.lengths], np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    targets = trained.copy()
    targets[cu_seqlens[:-1][lengths > 0]] = False
    positions = np.flatnonzero(targets)
    return Stream(
        input_ids=ids,
        position_ids=np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], lengths),
        cu_seqlens=cu_seqlens,
        loss_rows=positions - 1,
        loss_targets=ids[positions],
        loss_weights=weights[positions].astype(np.float32),
        owners=np.repeat(np.arange(len(examples)), [len(e.lengths) for e in examples]),
        indices=tuple(e.index for e in examples),
        facts=np.array([e.facts for e in examples], np.float32),
        tracks=_tracks(examples)[:, positions],
    )


def _tracks(examples: Sequence[Example]) -> FloatArray:
    """Return the numbers of every token of the stream, (K, T); all examples have the same K."""
    rows = [np.zeros((0, len(e.input_ids)), np.float32) if e.tracks is None else e.tracks for e in examples]
    return np.concatenate(rows, axis=1).astype(np.float32)
