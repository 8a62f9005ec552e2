"""Which examples belong to a step: a pure function of seed and step, so that resuming needs no replay. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from danlu.data.streaming.token_stream import TokenStream

IndexArray = NDArray[np.int64]


@dataclass(slots=True)
class Sampler:
    """The order of the examples over all epochs; one fresh permutation per epoch.

    lengths  tokens of each example; when given, the first epoch starts with the batches that need the most memory
    grouped  examples of similar length share a batch
    """

    num_examples: int
    global_batch: int
    seed: int
    shuffle: bool = True
    drop_last: bool = False
    lengths: Sequence[int] | IndexArray | None = None
    grouped: bool = False
    _epoch: int = field(default=-1, init=False)
    _order: IndexArray = field(default_factory=lambda: np.empty(0, np.int64), init=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every example once; the incomplete last one counts unless drop_last."""
        whole, rest = divmod(self.num_examples, self.global_batch)
        return whole + int(rest > 0 and not self.drop_last)

    def batch(self, step: int) -> list[int]:
        """Return the data-set positions of the step's global batch (`step` counts from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        start = place * self.global_batch
        return [int(i) for i in self._order[start:start + self.global_batch]]

    def _permutation(self, epoch: int) -> IndexArray:
        if not self.shuffle:
            return np.arange(self.num_examples)
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.num_examples)
        if self.lengths is None:
            return order
        lengths = np.asarray(self.lengths)
        if self.grouped:
            return _grouped(order, lengths, self.global_batch, random)
        return _heaviest_first(order, lengths, self.global_batch) if epoch == 0 else order


def _heaviest_first(order: IndexArray, lengths: IndexArray, batch: int) -> IndexArray:
    """Swap two whole batches with the first two: the one of the most tokens and, of the others, that of the longest.

    One of them needs the most memory: the first where a step is one pass, the second where a step is cut, as the
    longest row then bounds a pass. The second also meets the optimiser's moments, which the first step makes. How a
    step is cut has no say, so that a run goes on with the same order on another machine.
    """
    number = len(order) // batch
    batches_NG = order[:number * batch].reshape(number, batch)
    sizes_NG = lengths[batches_NG]
    places = np.arange(number)
    for front, weight_N in enumerate((sizes_NG.sum(1), sizes_NG.max(1))[:number]):
        heaviest = front + int(np.argmax(weight_N[places[front:]]))
        places[[front, heaviest]] = places[[heaviest, front]]
    return np.concatenate([batches_NG[places].ravel(), order[number * batch:]])


def _grouped(order: IndexArray, lengths: IndexArray, batch: int, random: np.random.Generator) -> IndexArray:
    """Sort windows of up to 50 batches by length, then shuffle whole batches; the longest batch comes first.

    Memory that does not suffice then shows at the first step, not in the middle of the run. The incomplete
    batch stays last, or every later batch of the epoch would be cut elsewhere.
    """
    window = batch * max(1, min(len(order) // (batch * 4), 50))
    pieces = [order[i:i + window] for i in range(0, len(order), window)]
    ordered = np.concatenate([piece[np.argsort(-lengths[piece], kind="stable")] for piece in pieces])
    batches = [ordered[i:i + batch] for i in range(0, len(ordered), batch)]
    rest = batches.pop() if len(batches[-1]) < batch else np.empty(0, np.int64)
    if not batches:
        return rest
    longest = int(np.argmax([lengths[one].max() for one in batches]))
    others = [i for i in random.permutation(len(batches)) if i != longest]
    return np.concatenate([batches[longest], *[batches[i] for i in others], rest])


@dataclass(slots=True)
class StreamBatches:
    """The global batches of a stream, which come in one order only; its own state says which is next."""

    stream: TokenStream
    global_batch: int
    drop_last: bool = False

    def batch(self, step: int) -> list[int]:
        """Return the positions of the next global batch; an epoch ends with an incomplete one unless drop_last."""
        return self.stream.batch(self.global_batch, drop_last=self.drop_last)


def share(batch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return the part of a global batch that belongs to one process: every world_size-th example."""
    return list(batch[rank::world_size])
