"""A pipeline that is interrupted while training goes on from the checkpoint, and ends as one that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from danlu.cli.main import main
from tests.reading import losses


@pytest.fixture
def pipeline(tiny_base: Path, world: Path, tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(f"""name: p
output_dir: {tmp_path}/whole
steps:
  - {{name: sft, run: train, stage: sft, finetuning_type: lora, model_name_or_path: {tiny_base}, dataset: chat,
     dataset_dir: {world}, max_steps: 200, per_device_train_batch_size: 2, logging_steps: 1, save_steps: 5,
     save_total_limit: 1, learning_rate: 1.0e-3}}
  - {{name: merged, run: export, model_name_or_path: "${{steps.sft.model_name_or_path}}",
     adapter_name_or_path: "${{steps.sft.output_dir}}"}}
""", encoding="utf-8")
    return path


def test_ctrl_c_then_again_equals_never_stopped(pipeline: Path, tmp_path: Path) -> None:
    """SIGINT to the runner after the first checkpoint: exit code 130, the export not reached; the second run takes the
    training up and merges. Weights are equal, bit for bit, to those of a run that never stopped."""
    broken = tmp_path / "broken"
    command = [sys.executable, "-m", "danlu", "run", str(pipeline), f"output_dir={broken}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as runner:
        deadline = time.monotonic() + 300
        while not list((broken / "sft").glob("checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(runner.pid, signal.SIGINT)
        said, _ = runner.communicate(timeout=300)
    assert runner.returncode == 130, said.decode()
    seen = len(losses(broken / "sft"))
    assert 5 <= seen < 200 and not (broken / "merged").exists()
    assert main(command[3:]) == 0
    assert len(losses(broken / "sft")) == 200
    assert main(["run", str(pipeline)]) == 0
    weights = [load_file(folder / "merged" / "model.safetensors") for folder in (broken, tmp_path / "whole")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    statuses = [step["status"] for step in json.loads((broken / "summary.json").read_text())["steps"]]
    assert statuses == ["done", "done"]
