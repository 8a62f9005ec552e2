"""PackedLM inside distributed wrappers: two processes with unequal rows, one of them with none, equal one process."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from danlu.core.stream import Example, flatten
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors
from tests.tiny import tiny_model


def make_stream(rank: int) -> StreamTensors:
    """Rank 0: three examples, rank 1: one without any supervised token."""
    rng = np.random.default_rng(rank)
    lengths, trained = ((9, 14, 3), 0.6) if rank == 0 else ((11,), 0.0)
    return StreamTensors.from_stream(flatten([
        Example(rng.integers(3, 320, n), rng.random(n) < trained) for n in lengths]))


def wrap(kind: str, packed: PackedLM) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(packed)
    for layer in packed.model.model.layers:
        fully_shard(layer)
    return fully_shard(packed)


def work(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = tiny_model().train()
    wrapped = wrap(kind, PackedLM(model))
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(make_stream(rank)).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    whole = {name: g.full_tensor() if kind == "fsdp" else g for name, g in grads.items()}
    if rank == 0:
        torch.save(whole, f"{folder}/grads.pt")
    leave_together(rank, Path(folder))


def leave_together(rank: int, folder: Path) -> None:
    """End the process once both are done. gloo's own way out hangs now and then when one process is gone first."""
    (folder / f"done-{rank}").touch()
    until = time.monotonic() + 60
    while not all((folder / f"done-{one}").exists() for one in range(2)):
        assert time.monotonic() < until, "the other process is not done after a minute"
        time.sleep(0.01)
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_gradients_equal_one_process(kind: str, tmp_path: Path) -> None:
    spawn(work, (kind, str(tmp_path)), nprocs=2)
    model = tiny_model().train()
    packed = PackedLM(model)
    (sum(packed(make_stream(rank)) for rank in range(2)) / 2).backward()
    got = torch.load(tmp_path / "grads.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
