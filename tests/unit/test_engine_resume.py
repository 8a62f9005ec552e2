"""Checkpoints: whole or absent, and a resumed run is bit for bit the run that never stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from danlu.core.errors import ConfigError, UserError
from danlu.core.run_dir import RunDir
from danlu.engine import checkpoint
from danlu.engine.faults import Interrupted
from danlu.engine.hooks import Hook
from danlu.engine.loop import Engine
from tests.toy_stage import ToyData, ToySaver, losses, make_config, make_stage, train, weights

ROOT = Path(__file__).resolve().parents[2]
DROPOUT = 0.3
OPTIMIZERS = ["adamw_torch_fused", "adamw_torch", "sgd", "adagrad", "rmsprop", "adafactor", "adamw_8bit", "lion_32bit",
              "paged_adamw_32bit", "ademamix"]


class StopAt(Hook):
    """Send the signal while a chosen step is the last one done."""

    def __init__(self, step: int, number: int) -> None:
        self.at, self.number = step, number

    def on_step(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def stop_at(folder: Path, step: int, number: int = signal.SIGTERM, **keys: object) -> Interrupted:
    config = make_config(folder, **keys)
    with pytest.raises(Interrupted) as caught:
        Engine(config, RunDir.create(folder), ToySaver(), hooks=[StopAt(step, number)]).fit(
            make_stage(DROPOUT), ToyData(), ToyData(5, seed=1))
    return caught.value


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_resumed_run_is_bit_identical(tmp_path: Path, optim: str) -> None:
    """Stopped after step 4 of 12 (in the middle of an epoch and of a log window), dropout on."""
    keys: dict[str, object] = {
        "optim": optim, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 5, "learning_rate": 0.01,
        "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01}
    whole, one = train(tmp_path / "whole", stage=make_stage(DROPOUT), eval_data=ToyData(5, seed=1), **keys)
    stop_at(tmp_path / "parts", 4, **keys)
    # Nothing of the first session may be needed: other weights, other random state.
    torch.manual_seed(99)
    random.seed(99)
    result, other = train(tmp_path / "parts", stage=make_stage(DROPOUT, seed=5), eval_data=ToyData(5, seed=1), **keys)
    assert result.resumed_from is not None
    assert result.resumed_from.name == "checkpoint-4"
    assert torch.equal(weights(one), weights(other))
    timing = {"eval_runtime", "eval_samples_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in r.history] for r in (whole, result)]
    assert rows[0] == rows[1]
    steps = [json.loads(line)["current_steps"] for line in (tmp_path / "parts/trainer_log.jsonl").open()]
    assert steps == [3, 5, 6, 9, 10, 12]
    assert whole.metrics["train_loss"] == result.metrics["train_loss"]


@pytest.mark.parametrize("step", range(1, 12))
def test_resume_at_any_step(tmp_path: Path, step: int) -> None:
    keys: dict[str, object] = {"save_strategy": "steps", "save_steps": 1, "group_by_length": True}
    whole, one = train(tmp_path / "whole", stage=make_stage(DROPOUT), **keys)
    for later in range(step + 1, 13):
        shutil.rmtree(tmp_path / f"whole/checkpoint-{later}")
    result, other = train(tmp_path / "whole", stage=make_stage(DROPOUT, seed=5), **keys)
    assert torch.equal(weights(one), weights(other))
    assert losses(result) == losses(whole)


def test_moments_of_bfloat16_weights_resume_exactly(tmp_path: Path) -> None:
    """Adafactor keeps float32 moments beside bfloat16 weights; torch's own loading would round them."""
    def stage() -> object:
        made = make_stage(DROPOUT)
        made.models.policy.to(torch.bfloat16)
        return made

    whole, one = train(tmp_path / "whole", stage=stage(), optim="adafactor")  # type: ignore[arg-type]
    config = make_config(tmp_path / "parts", optim="adafactor")
    with pytest.raises(Interrupted):
        Engine(config, RunDir.create(tmp_path / "parts"), ToySaver(), hooks=[StopAt(5, signal.SIGTERM)]).fit(
            stage(), ToyData())  # type: ignore[arg-type]
    result, other = train(tmp_path / "parts", stage=stage(), optim="adafactor")  # type: ignore[arg-type]
    assert losses(result) == losses(whole)
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_says_where(tmp_path: Path, number: int, code: int) -> None:
    before = signal.getsignal(number)
    error = stop_at(tmp_path, 3, number)
    assert error.exit_code == code
    assert error.checkpoint.endswith("checkpoint-3")
    assert "resume" in str(error)
    assert checkpoint.fault_of(Path(error.checkpoint), checksums=True) is None
    assert signal.getsignal(number) == before


def test_broken_checkpoints_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Newest without manifest, next with a flipped byte, next cut short, then a whole one at step 3."""
    train(tmp_path, save_strategy="steps", save_steps=3, max_steps=12, stage=make_stage(DROPOUT))
    (tmp_path / "checkpoint-12/manifest.json").unlink()
    flipped = tmp_path / "checkpoint-9/model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    with (tmp_path / "checkpoint-6/optimizer.pt").open("r+b") as file:
        file.truncate(100)
    capsys.readouterr()
    result, _ = train(tmp_path, save_strategy="no", max_steps=12)
    said = capsys.readouterr().err
    assert result.resumed_from is not None
    assert result.resumed_from.name == "checkpoint-3"
    assert "checkpoint-12 is ignored: no manifest.json" in said
    assert "the checksum of model.safetensors differs" in said
    assert "checkpoint-6 is ignored: optimizer.pt has 100 bytes" in said


def test_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    _, one = train(tmp_path, save_strategy="epoch")
    result, other = train(tmp_path, save_strategy="epoch", stage=make_stage(seed=5))
    assert result.steps == 12
    assert torch.equal(weights(one), weights(other))


def test_changed_run_is_refused_or_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, save_strategy="steps", save_steps=5, max_steps=5)
    with pytest.raises(ConfigError, match="learning_rate 0.05 -> 0.01"):
        train(tmp_path, learning_rate=0.01)
    with pytest.raises(ConfigError, match="data toy-23-0-None -> toy-23-8-None"):
        train(tmp_path, data=ToyData(seed=8))
    with pytest.raises(ConfigError, match=r"cannot be resumed: .*optim adamw_torch_fused -> sgd"):
        train(tmp_path, optim="sgd", resume_from_checkpoint=True)
    result, _ = train(tmp_path, learning_rate=0.01, lr_scheduler_type="constant", resume_from_checkpoint=True)
    assert "resuming with changed settings" in capsys.readouterr().err
    assert result.history[-1]["learning_rate"] == 0.01
    assert result.steps == 12


def test_choice_of_where_to_resume(tmp_path: Path) -> None:
    train(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(ConfigError, match="resume_from_checkpoint is false"):
        train(tmp_path, resume_from_checkpoint=False)
    result, _ = train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert result.resumed_from == tmp_path / "checkpoint-4"
    with pytest.raises(ConfigError, match="no such checkpoint"):
        train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    (tmp_path / "notes.txt").write_text("mine")
    result, _ = train(tmp_path, overwrite_output_dir=True)
    assert result.resumed_from is None
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("checkpoint-*"))


def test_weights_only_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, save_strategy="steps", save_steps=6, save_only_model=True)
    files = {p.name for p in (tmp_path / "checkpoint-6").iterdir()}
    assert files == {"model.safetensors", "trainer_state.json", "manifest.json"}
    with pytest.raises(ConfigError, match="can be resumed"):
        train(tmp_path)


def test_total_limit_keeps_the_newest(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1/foreign.bin").write_text("not danlu's")
    train(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    assert {p.name for p in tmp_path.glob("*checkpoint-*")} == {"checkpoint-1", "checkpoint-10", "checkpoint-12"}


def test_output_folder_rules(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("a finished model")
    with pytest.raises(ConfigError, match="holds a result"):
        RunDir.create(tmp_path)
    (tmp_path / "checkpoint-7").mkdir()
    for read in (tmp_path, tmp_path / "checkpoint-7"):
        with pytest.raises(ConfigError, match="reads from"):
            RunDir.create(tmp_path, overwrite=True, inputs=[read])
    assert (tmp_path / "checkpoint-7").exists()
    assert (tmp_path / "model.safetensors").exists()
    run = RunDir.create(tmp_path, overwrite=True, config={"stage": "sft", "lora_target": ("a", "b")})
    assert (tmp_path / "model.safetensors").exists()
    run.begin()
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "training_args.yaml").read_text() == "stage: sft\nlora_target:\n- a\n- b\n"
    assert "torch" in json.loads((tmp_path / "environment.json").read_text())["packages"]


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.toy_stage import make_stage, train
from torch import nn
import torch
stage = make_stage(0.3)
if {ballast}:
    stage.models.policy.ballast = nn.Parameter(torch.zeros({ballast}))
    stage.models.policy.ballast.register_hook(lambda g: g)
train(Path(sys.argv[1]), stage=stage, save_strategy="steps", save_steps=1, max_steps={steps})
"""


def test_kill_in_the_middle_of_saving_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL the moment a half-written checkpoint of 40 MB is seen after two whole ones."""
    script = _CHILD.format(root=str(ROOT), ballast=10_000_000, steps=10_000)
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.DEVNULL)
    half = tmp_path / ".tmp-checkpoint-3"
    try:
        deadline = time.monotonic() + 120
        while not (half / "model.safetensors").exists():
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.0005)
    finally:
        child.kill()
        child.wait()
    assert half.exists()
    assert not (half / "manifest.json").exists()
    run = RunDir(tmp_path)
    assert [p.name for p in run.checkpoints()] == ["checkpoint-1", "checkpoint-2"]
    assert all(checkpoint.fault_of(p, checksums=True) is None for p in run.checkpoints())
    assert checkpoint.find_resume(run, None, overwrite=False) == tmp_path / "checkpoint-2"
    checkpoint.remove_leftovers(run)
    assert not half.exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a tmpfs needs root")
def test_full_disk_is_an_error_and_not_a_loss(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    stage = make_stage(DROPOUT)
    stage.models.policy.ballast = torch.nn.Parameter(torch.zeros(300_000))
    try:
        with pytest.raises(UserError, match="no space left") as caught:
            train(disk / "run", stage=stage, save_strategy="steps", save_steps=1, max_steps=200)
        run = RunDir(disk / "run")
        assert [p.name for p in run.checkpoints()] == ["checkpoint-1"]
        assert all(checkpoint.fault_of(p, checksums=True) is None for p in run.checkpoints())
        assert not list((disk / "run").glob(".tmp-*"))
        assert "free space" in str(caught.value)
        assert "checkpoint-1 is whole" in str(caught.value)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_that_cannot_grow_is_an_error_and_not_a_loss(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk where nothing can be mounted: the second checkpoint does not fit."""
    import resource

    config = make_config(tmp_path, save_strategy="steps", save_steps=2)

    class Limit(Hook):
        def on_save(self, step: int, folder: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    try:
        with pytest.raises(UserError, match="cannot be written"):
            Engine(config, RunDir.create(tmp_path), ToySaver(), hooks=[Limit()]).fit(make_stage(), ToyData())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [p.name for p in tmp_path.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert checkpoint.fault_of(tmp_path / "checkpoint-2", checksums=True) is None
