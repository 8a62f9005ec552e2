"""kill -9, then Ctrl-C on `danlu train`, as a cluster or a user does them; the same command goes on each time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def start(file: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "danlu", "train", str(file), *words], stderr=subprocess.PIPE,
                            text=True, stdout=subprocess.DEVNULL, env=environment)


def stop(child: subprocess.Popen[str], log: Path, step: int, number: int) -> str:
    """Send the signal when `step` is in the log; return what the run said."""
    deadline = time.monotonic() + 180
    try:
        while not log.exists() or last_step(log) < step:
            assert time.monotonic() < deadline
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            time.sleep(0.02)
        child.send_signal(number)
        return child.communicate(timeout=120)[1]
    finally:
        child.kill()


def last_step(log: Path) -> int:
    lines = log.read_text().split("\n")[:-1]
    return int(json.loads(lines[-1])["current_steps"]) if lines else 0


def test_stopped_training_goes_on(tiny_base: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = {
        "model_name_or_path": str(tiny_base), "stage": "sft", "do_train": True, "dataset": "chat",
        "dataset_dir": str(world), "output_dir": str(out), "finetuning_type": "lora", "lora_dropout": 0.1,
        "max_steps": 100000, "logging_steps": 1, "save_steps": 5, "per_device_train_batch_size": 2, "lora_rank": 4,
        "save_total_limit": 2, "lr_scheduler_type": "constant"}
    file, log = tmp_path / "run.json", out / "trainer_log.jsonl"
    file.write_text(json.dumps(config), encoding="utf-8")

    killed = start(file)
    stop(killed, log, 17, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL

    asked = start(file)
    said = stop(asked, log, last_step(log) + 10, signal.SIGINT)
    assert asked.returncode == 130, said
    assert f"resuming from {out}/checkpoint-" in said
    reached = last_step(log)
    assert f"the run is saved in {out}/checkpoint-{reached}\n" in said
    assert (out / f"checkpoint-{reached}/manifest.json").exists()

    finished = start(file, f"max_steps={reached + 3}")
    said = finished.communicate(timeout=180)[1]
    assert finished.returncode == 0, said
    assert f"resuming from {out}/checkpoint-{reached} at step {reached} of {reached + 3}" in said
    steps = [json.loads(line)["current_steps"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, reached + 4))
    assert (out / "adapter_model.safetensors").exists()
