"""Forward passes without gradient over many examples: cut like micro-batches, handed back in the examples' order."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from danlu.core.stream import Example, FloatArray
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import Surroundings

T = TypeVar("T")
DEALT_AT_ONCE = 256
"""Examples that passes are dealt from: an evaluation brings its whole data set."""


def in_passes(examples: Sequence[Example], around: Surroundings,
              compute: Callable[[StreamTensors, Sequence[Example]], Sequence[T]]) -> list[T]:
    """Return what `compute` gives for each example, one forward pass at a time.

    compute  takes a pass's examples, laid out on the device and as they are; returns one value for each
    """
    found: list[T] = []
    for first in range(0, len(examples), DEALT_AT_ONCE):
        part = examples[first:first + DEALT_AT_ONCE]
        values: dict[int, T] = {}
        for places in around.deal(part):
            members = [part[at] for at in places]
            with torch.no_grad():
                values |= zip(places, compute(StreamTensors.of(members).to(around.device), members), strict=True)
        found += [values[at] for at in range(len(part))]
    return found


def by_answer(values_R: Tensor, examples: Sequence[Example]) -> list[list[FloatArray]]:
    """Return the numbers of each segment's targets, example by example."""
    counts = [targets_of(one) for one in examples]
    answers = iter(values_R.cpu().split([count for own in counts for count in own]))
    return [[next(answers).numpy() for _ in own] for own in counts]


def targets_of(one: Example) -> list[int]:
    """Return the number of targets in each segment; its first token is none."""
    starts = np.cumsum(one.lengths) - one.lengths
    return [int(one.trained[start + 1:start + length].sum()) for start, length in zip(starts, one.lengths, strict=True)]
