"""Two processes over gloo compute what one computes, also when the last batch does not fill them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.toy_stage import ToyData, train, weights

ROOT = Path(__file__).resolve().parents[2]
_CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from danlu.core.console import is_main_process
from danlu.engine.faults import Interrupted
from tests.toy_stage import ToyData, make_stage, train
from safetensors.torch import save_file
keys = json.loads(sys.argv[2])
bad, wait = keys.pop("bad", None), keys.pop("wait", False)
try:
    result, stage = train(Path(sys.argv[1]), stage=make_stage(), data=ToyData(21, bad=bad),
                          eval_data=ToyData(5, seed=1), **keys)
except Interrupted as stop:
    print(stop, file=sys.stderr)
    sys.exit(stop.exit_code)
if is_main_process():
    save_file(stage.models.policy.state_dict(), Path(sys.argv[1]) / "final.safetensors")
"""


def launch(folder: Path, **keys: object) -> subprocess.Popen[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
               "--master_port", str(port), "--no-python", sys.executable, "-c", _CHILD.format(root=str(ROOT)),
               str(folder), json.dumps(keys)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def run_two(folder: Path, **keys: object) -> str:
    child = launch(folder, **keys)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    return said


def history(folder: Path) -> list[dict[str, float]]:
    timing = {"eval_runtime", "eval_samples_per_second", "tokens_per_second"}
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """21 examples, 4 a step: the sixth step has one example, so the second process has none."""
    keys = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 5}
    _, stage = train(tmp_path / "one", data=ToyData(21), eval_data=ToyData(5, seed=1),
                     per_device_train_batch_size=2, gradient_accumulation_steps=2, **keys)
    run_two(tmp_path / "two", per_device_train_batch_size=1, gradient_accumulation_steps=2, **keys)
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 14
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        assert all(right[name] == pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in left.items())
    final = load_file(tmp_path / "two/final.safetensors")
    for name, value in stage.models.policy.state_dict().items():
        assert torch.allclose(final[name], value, atol=1e-5)
    assert weights(stage).numel() == sum(v.numel() for v in final.values())

    # One process goes on where two stopped.
    resumed, other = train(tmp_path / "two", data=ToyData(21), eval_data=ToyData(5, seed=1), num_train_epochs=3,
                           per_device_train_batch_size=2, gradient_accumulation_steps=2, **keys)
    assert resumed.steps == 18
    assert resumed.resumed_from is not None


def test_two_processes_stop_together_on_nan(tmp_path: Path) -> None:
    child = launch(tmp_path, bad=6, per_device_train_batch_size=1, disable_shuffling=True)
    _, said = child.communicate(timeout=300)
    assert child.returncode != 0
    assert "at step 2; rows: toy.jsonl:7\n" in said


def test_sigterm_to_the_launcher_saves(tmp_path: Path) -> None:
    child = launch(tmp_path, per_device_train_batch_size=1, num_train_epochs=100000)
    deadline = time.monotonic() + 120
    log = tmp_path / "trainer_log.jsonl"
    while not log.exists() or log.stat().st_size < 2000:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    folders = list(tmp_path.glob("checkpoint-*"))
    assert len(folders) == 1
    assert (folders[0] / "manifest.json").exists()
