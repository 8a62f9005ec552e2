"""S0b: one pipeline file from a base to an aligned model on real Chinese data, killed in the middle and taken up again.

Each further step is one entry of STEPS.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli.main import main
from tests.reading import losses

pytestmark = [pytest.mark.shared, pytest.mark.slow]

STEPS: list[dict[str, Any]] = [
    {"name": "sft", "run": "train", "stage": "sft", "dataset": "alpaca_zh_demo", "model_name_or_path": "{base}",
     "max_samples": 80, "num_train_epochs": 2},
    {"name": "rm", "run": "train", "stage": "rm", "dataset": "oaast_rm_zh", "from": "sft", "on_bad_row": "skip",
     "max_samples": 60, "num_train_epochs": 2},
    {"name": "ppo", "run": "train", "stage": "ppo", "dataset": "alpaca_zh_demo", "from": "sft",
     "reward_model": "${steps.rm.output_dir}", "max_samples": 16, "num_train_epochs": 1, "learning_rate": 1.0e-3,
     "cutoff_len": 96, "max_new_tokens": 12},
]
KILLED = STEPS[1]["name"]
DEFAULTS: dict[str, Any] = {
    "template": "default", "dataset_dir": "{data}", "cutoff_len": 192, "finetuning_type": "lora", "lora_target": "all",
    "per_device_train_batch_size": 4, "learning_rate": 1.0e-2, "lr_scheduler_type": "constant", "logging_steps": 1,
    "save_steps": 3, "save_total_limit": 1, "plot_loss": True, "preprocessing_num_workers": 1}


def filled(value: Any, **places: Path) -> Any:
    """Return the value with every {place} in it replaced."""
    if isinstance(value, dict):
        return {key: filled(one, **places) for key, one in value.items()}
    return value.format(**places) if isinstance(value, str) and "${" not in value else value


@pytest.fixture
def pipeline(tiny_base: Path, shared: Path, tmp_path: Path) -> Path:
    """The pipeline file, beside a registry of the two data sets in their layout of 2023."""
    source = shared / "data" / "LLaMA-Factory"
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset_info.json").write_text(json.dumps({
        "alpaca_zh_demo": {"file_name": str(source / "data" / "alpaca_zh_demo.json")},
        "oaast_rm_zh": {"file_name": str(source / "data_2023" / "oaast_rm_zh.json"), "ranking": True,
                        "columns": columns}}))
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({
        "name": "seed", "output_dir": str(tmp_path / "out"), "defaults": filled(DEFAULTS, base=tiny_base, data=data),
        "steps": [filled(step, base=tiny_base, data=data) for step in STEPS]}, sort_keys=False), encoding="utf-8")
    return path


def statuses(out: Path) -> dict[str, str]:
    return {step["step"]: step["status"] for step in json.loads((out / "summary.json").read_text())["steps"]}


def kill_while_it_trains(pipeline: Path, folder: Path) -> str:
    """Run the pipeline and kill the process of the step that writes to `folder` once it has a checkpoint."""
    with subprocess.Popen([sys.executable, "-m", "danlu", "run", str(pipeline)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as runner:
        deadline = time.monotonic() + 300
        while not list(folder.glob("checkpoint-*")) and runner.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        said, _ = runner.communicate(timeout=300)
    assert children and runner.returncode == 128 + signal.SIGKILL, said
    return said


def test_document_000(pipeline: Path) -> None:
    """Killed by the system in the middle of a step: what is done stays done, the step goes on from its checkpoint, and
    every step has its curve."""
    out = pipeline.parent / "out"
    said = kill_while_it_trains(pipeline, out / KILLED)
    assert f"step {KILLED}" in said and "it goes on from this step" in said
    assert statuses(out)[KILLED] == "failed"
    before = losses(out / KILLED)
    assert main(["run", str(pipeline)]) == 0
    names = [step["name"] for step in STEPS]
    at = names.index(KILLED)
    assert statuses(out) == {name: "already done" if place < at else "done" for place, name in enumerate(names)}
    assert losses(out / KILLED)[:3] == before[:3], "the steps before the checkpoint are those of the killed run"
    for name in names:
        rows = [json.loads(line) for line in (out / name / "trainer_log.jsonl").read_text().splitlines()]
        assert [row["current_steps"] for row in rows] == list(range(1, rows[-1]["total_steps"] + 1)), name
        assert (out / name / "training_loss.png").read_bytes().startswith(b"\x89PNG"), name
    trail = losses(out / "sft")
    assert sum(trail[-10:]) < sum(trail[:10]), trail
    page = (out / "pipeline.html").read_text(encoding="utf-8")
    assert page.count('aria-label="loss"') == len(names) and "rm/training_accuracy.png" in page
    assert "ppo/rollouts.html" in page and page.count('aria-label="reward"') == 1
    answers = [json.loads(line) for line in (out / "ppo" / "rollouts.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert {row["step"] for row in answers} == {1, 2, 3}, "12 prompts within cutoff_len, 4 in a batch"
    assert (out / "ppo" / "training_kl.png").is_file()
