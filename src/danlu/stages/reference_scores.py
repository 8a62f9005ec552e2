"""What the reference thinks of answers: computed for those that were never seen, read from disk for all others.

Kept are the log-probabilities of each trained token of a segment, by the segment's tokens and the reference's weights;
every loss derives its numbers from them, on the CPU, so that they do not depend on what was kept.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from danlu.core.console import say
from danlu.core.stream import Example, FloatArray
from danlu.data import fingerprint
from danlu.data.dataset import cache_root
from danlu.models.proof import evaluating
from danlu.models.save import stock_model
from danlu.models.stream_tensors import StreamTensors
from danlu.models.weights_digest import digest_of
from danlu.stages.base import Stage
from danlu.stages.passes import by_answer, in_passes
from danlu.stages.reference import reference_of
from danlu.stages.reference_store import MIB, ReferenceStore

AT_ONCE = 256
"""Examples whose kept values are looked up, and whose missing ones are written, in one go."""
Derive = Callable[[StreamTensors, Tensor], Tensor]


class ReferenceScores:
    """The reference of one stage, asked only for what is not kept (`reference_cache`)."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._store: ReferenceStore | None = None
        self._is_open = False

    def of(self, examples: Sequence[Example], derive: Derive) -> list[list[float]]:
        """Return `derive(micro, logps_R)`, (B, F), of every example under the reference."""
        found: list[list[float]] = []
        for start in range(0, len(examples), AT_ONCE):
            part = examples[start:start + AT_ONCE]
            logps_R = np.concatenate(self._logps(part))
            found += derive(StreamTensors.of(part), torch.from_numpy(logps_R)).tolist()
        return found

    def _logps(self, examples: Sequence[Example]) -> list[FloatArray]:
        """Return the log-probabilities of each segment's trained tokens, segment after segment."""
        store = self._opened()
        if store is None:
            return self._computed(examples)
        groups = [_keys(one) for one in examples]
        keys = [key for group in groups for key in group]
        known = dict(zip(keys, store.find(keys), strict=True))
        wanted, unseen = _unseen(examples, groups, {key for key, values in known.items() if values is None})
        if wanted:
            known |= zip(wanted, store.add(wanted, self._computed(unseen)), strict=True)
        return [values for key in keys if (values := known[key]) is not None]

    def _computed(self, examples: Sequence[Example]) -> list[FloatArray]:
        with reference_of(self._stage.models) as reference, evaluating(reference):
            found = in_passes(examples, self._stage.surroundings,
                              lambda micro, part: by_answer(reference(micro, output="logps"), part))
        return [answer for own in found for answer in own]

    def _opened(self) -> ReferenceStore | None:
        """Return the store of this reference; None where the run writes nothing or `reference_cache` is false."""
        if not self._is_open:
            self._is_open = True
            around = self._stage.surroundings
            if around.folder is not None and self._stage.config.reference_cache:
                name = fingerprint.of_values(self._digest(), around.precision, around.device.type)
                self._store = ReferenceStore(cache_root() / "reference" / name)
                say(f"reference log-probabilities: {len(self._store)} answers kept in {self._store.folder} "
                    f"({self._store.num_bytes / MIB:.1f} MiB)")
        return self._store

    def _digest(self) -> str:
        models = self._stage.models
        if models.reference is not None:
            return digest_of(stock_model(models.reference))
        return digest_of(stock_model(models.policy), without_adapter=True)


def _keys(one: Example) -> list[bytes]:
    """Return a key for each segment: a hash of its tokens and of which of them are targets."""
    found, start = [], 0
    for length in one.lengths:
        trained = np.array(one.trained[start:start + length], np.uint8)
        trained[:1] = 0
        ids = np.ascontiguousarray(one.input_ids[start:start + length], np.int64)
        found.append(blake2b(ids.tobytes() + trained.tobytes(), digest_size=16).digest())
        start += length
    return found


def _unseen(
    examples: Sequence[Example], groups: Sequence[Sequence[bytes]], absent: set[bytes]
) -> tuple[list[bytes], list[Example]]:
    """Return the keys of the absent segments, each once, and examples that hold these segments alone.

    groups  the keys of each example's segments
    """
    keys: list[bytes] = []
    found: list[Example] = []
    for one, group in zip(examples, groups, strict=True):
        chosen = []
        for place, key in enumerate(group):
            if key in absent:
                absent.remove(key)
                keys.append(key)
                chosen.append(place)
        if chosen:
            found.append(_only(one, chosen))
    return keys, found


def _only(one: Example, segments: Sequence[int]) -> Example:
    """Return tokens and targets of some segments of an example."""
    starts = np.cumsum(one.lengths) - one.lengths
    places = np.concatenate([np.arange(starts[at], starts[at] + one.lengths[at]) for at in segments])
    lengths = tuple(one.lengths[at] for at in segments)
    return Example(one.input_ids[places], one.trained[places], lengths=lengths, index=one.index)
