"""Ctrl-C, SIGTERM and kill -9 on `danlu train`, as a user or a cluster does them; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "danlu", *command], stderr=subprocess.PIPE, text=True,
                            stdout=subprocess.DEVNULL, env=environment)


def wait_for_rows(child: subprocess.Popen[str], log: Path, rows: int) -> None:
    deadline = time.monotonic() + 180
    while not log.exists() or log.read_text().count("\n") < rows:
        assert time.monotonic() < deadline
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_training_goes_on(tiny_base: Path, world: Path, tmp_path: Path, number: int, code: int) -> None:
    config = {
        "model_name_or_path": str(tiny_base), "stage": "sft", "do_train": True, "dataset": "chat",
        "dataset_dir": str(world), "output_dir": str(tmp_path / "out"), "finetuning_type": "lora", "lora_dropout": 0.1,
        "max_steps": 100000, "logging_steps": 1, "save_steps": 5, "per_device_train_batch_size": 2, "lora_rank": 4,
        "save_total_limit": 2, "lr_scheduler_type": "constant"}
    file, log = tmp_path / "run.json", tmp_path / "out/trainer_log.jsonl"
    file.write_text(json.dumps(config), encoding="utf-8")
    child = start(["train", str(file)])
    try:
        wait_for_rows(child, log, 17)
        child.send_signal(number)
        said = child.communicate(timeout=120)[1]
    finally:
        child.kill()
    assert child.returncode == code, said
    reached = json.loads(log.read_text().splitlines()[-1])["current_steps"]
    saved = max(int(p.name.split("-")[1]) for p in (tmp_path / "out").glob("checkpoint-*"))
    if number != signal.SIGKILL:
        assert saved == reached
        assert f"checkpoint-{saved}" in said
        assert "resume" in said
    last = reached + 3
    again = start(["train", str(file), f"max_steps={last}"])
    said = again.communicate(timeout=180)[1]
    assert again.returncode == 0, said
    assert f"resuming from {tmp_path / 'out'}/checkpoint-" in said
    steps = [json.loads(line)["current_steps"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, last + 1))
    assert (tmp_path / "out/adapter_model.safetensors").exists()
