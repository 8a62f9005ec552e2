"""A stream on its way to a device: the same numbers, and on a GPU without waiting for the work that runs there."""

import numpy as np
import pytest
import torch
from torch import Tensor

from danlu.core.stream import Example
from danlu.models.stream_tensors import TENSORS, StreamTensors


def stream() -> StreamTensors:
    """Return two examples of two answers each, which share their prompts, so that there is a tree."""
    prompt = [*range(1, 41)]
    ids = np.array([*prompt, 50, 51, *prompt, 60, 61], np.int64)
    trained = np.array(([False] * 40 + [True] * 2) * 2)
    micro = StreamTensors.of([Example(ids, trained, lengths=(42, 42), index=index) for index in range(2)])
    assert micro.tree is not None
    return micro


def tensors(micro: StreamTensors) -> list[Tensor]:
    assert micro.tree is not None
    return [*(getattr(micro, name) for name in TENSORS), micro.tree.kept, micro.tree.places]


def test_on_the_same_device_nothing_is_copied() -> None:
    micro = stream()
    assert all(one is other for one, other in zip(tensors(micro), tensors(micro.to("cpu")), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_fed_without_a_wait() -> None:
    micro = stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = micro.to("cuda")
        again = there.to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other.cpu()) for one, other in zip(tensors(micro), tensors(there), strict=True))
    assert all(one is other for one, other in zip(tensors(there), tensors(again), strict=True))
