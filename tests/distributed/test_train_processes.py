"""`torchrun -m danlu train` in two processes computes what one process computes, for every stage."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from danlu.cli.main import main
from danlu.stages.base import STAGES
from tests.e2e.test_stages_learn import DATA
from tests.online import stage_keys
from tests.reading import losses


def in_two_processes(config_file: Path) -> None:
    """Run danlu under torchrun with two ranks over gloo, to a good end."""
    child = started_in_two(config_file)
    assert child.returncode == 0, child.stderr


def started_in_two(config_file: Path) -> subprocess.CompletedProcess[str]:
    """Run danlu under torchrun with two ranks over gloo, to whatever end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
               "--master_port", str(port), "-m", "danlu", "train", str(config_file)]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=300, check=False)


@pytest.mark.parametrize("stage", list(STAGES))
def test_two_processes_equal_one(stage: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Six examples a step on one rank equal three on each of two, also where an epoch ends in unequal shares."""
    config: dict[str, Any] = {
        "model_name_or_path": str(tiny_base), "stage": stage, "do_train": True, "finetuning_type": "lora",
        "dataset": DATA[stage], "dataset_dir": str(world), "learning_rate": 5e-3, "max_steps": 4, "logging_steps": 1,
        "packing": False, "save_strategy": "no",
        **stage_keys(stage, world)}
    outputs = {}
    for processes, batch in ((1, 6), (2, 3)):
        out = tmp_path / f"{processes}"
        file = tmp_path / f"{processes}.json"
        keys = {**config, "output_dir": str(out), "per_device_train_batch_size": batch}
        file.write_text(json.dumps(keys), encoding="utf-8")
        if processes == 1:
            assert main(["train", str(file)]) == 0
        else:
            in_two_processes(file)
        outputs[processes] = (losses(out), load_file(out / "adapter_model.safetensors"))
    assert outputs[2][0] == pytest.approx(outputs[1][0], rel=1e-5, abs=1e-6)
    for name, tensor in outputs[1][1].items():
        torch.testing.assert_close(outputs[2][1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
