"""Checkpoints written while the run goes on: the bytes of their own step, one at a time, errors heard."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from danlu.core.errors import UserError
from danlu.core.run_dir import RunDir
from danlu.engine.checkpoint import fault_of, load_tensors
from danlu.engine.hooks import Hook
from danlu.engine.loop import Engine
from danlu.engine.writer import Saved, Writer
from tests.toy_stage import ToyData, ToySaver, make_config, make_stage, train


class SlowSaver(ToySaver):
    """Reads the weights long after it was asked to; from the `bad`-th time on the disk is full."""

    def __init__(self, bad: int = 99) -> None:
        self.calls, self.bad = 0, bad

    def begin(self, policy: nn.Module, folder: Path) -> Callable[[], None]:
        write = super().begin(policy, folder)
        self.calls += 1

        def later(full: bool = self.calls >= self.bad) -> None:
            time.sleep(0.1)
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            write()

        return later


class Heard(Hook):
    """Notes each checkpoint that it is told of, and whether it is whole by then."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, str | None]] = []

    def on_save(self, step: int, folder: Path) -> None:
        self.saved.append((step, fault_of(folder, checksums=True)))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor"])
def test_a_late_write_holds_the_weights_of_its_own_step(tmp_path: Path, optim: str) -> None:
    """Weights and moments are read 0.1 s after the save, when the next update would long have changed them."""
    keys: dict[str, object] = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1, "optim": optim}
    train(tmp_path / "sync", async_save=False, **keys)
    heard = Heard()
    Engine(make_config(tmp_path / "async", async_save=True, **keys), RunDir.create(tmp_path / "async"), SlowSaver(),
           hooks=[heard]).fit(make_stage(), ToyData())
    assert heard.saved == [(2, None), (4, None), (6, None)]
    for step in (2, 4, 6):
        one, other = (tmp_path / kind / f"checkpoint-{step}" for kind in ("sync", "async"))
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        left, right = load_tensors(one, "optimizer.pt"), load_tensors(other, "optimizer.pt")
        assert left["state"].keys() == right["state"].keys() and left["state"]
        for index, moments in left["state"].items():
            for name, value in moments.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(right["state"][index][name])), name


@pytest.mark.parametrize("asked", [True, False])
def test_a_full_disk_is_heard_of_and_costs_no_earlier_checkpoint(tmp_path: Path, asked: bool) -> None:
    config = make_config(tmp_path, async_save=asked, save_strategy="steps", save_steps=2)
    with pytest.raises(UserError, match="no space left on the disk") as caught:
        Engine(config, RunDir.create(tmp_path), SlowSaver(bad=2)).fit(make_stage(), ToyData())
    assert "checkpoint-4" in str(caught.value) and "checkpoint-2 is whole" in str(caught.value)
    assert fault_of(tmp_path / "checkpoint-2", checksums=True) is None
    assert [path.name for path in RunDir(tmp_path).checkpoints()] == ["checkpoint-2"]
    assert not list(tmp_path.glob(".tmp-*"))


def test_one_at_a_time_and_change_waits_for_reading_only(tmp_path: Path) -> None:
    writer, seen = Writer(in_background=True), []

    def slowly(name: str) -> None:
        time.sleep(0.05)
        seen.append(name)

    def seal() -> Saved:
        slowly("sealed")
        return Saved(7, tmp_path)

    writer.start(lambda: slowly("stored"), seal)
    with pytest.raises(RuntimeError, match="still being written"):
        writer.start(lambda: None, seal)
    assert writer.collect() is None
    writer.before_change()
    assert seen == ["stored"]
    assert writer.wait() == Saved(7, tmp_path)
    assert writer.wait() is None
    assert writer.close() is None
