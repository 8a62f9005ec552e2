"""A reward that fails in one process stops all of them, with a checkpoint of the last step."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_train_processes import in_two_processes, started_in_two

FAILS_ONCE = """
import os
from pathlib import Path

calls = 0


def score(completions):
    global calls
    calls += 1
    flag = Path(__file__).with_name("mended")
    if calls == 3 and os.environ["RANK"] == "1" and not flag.exists():
        flag.touch()
        raise RuntimeError("out of patience")
    return [float(len(text)) for text in completions]
"""


@pytest.mark.slow
def test_a_failure_in_one_process_stops_both_and_loses_nothing(tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Fails in step 3 of 4 in the second process only; the first does not wait forever, and the run goes on after."""
    (tmp_path / "mine.py").write_text(FAILS_ONCE, encoding="utf-8")
    config: dict[str, Any] = {
        "model_name_or_path": str(tiny_base), "stage": "ppo", "dataset": "chat", "dataset_dir": str(world),
        "max_steps": 4, "per_device_train_batch_size": 2, "max_new_tokens": 2, "save_strategy": "no",
        "reward_model_type": "function", "reward_model": f"{tmp_path}/mine.py:score",
        "output_dir": str(tmp_path / "out")}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    broken = started_in_two(file)
    assert broken.returncode != 0 and "RuntimeError: out of patience" in broken.stderr
    assert f"the run is saved in {tmp_path / 'out' / 'checkpoint-2'}" in broken.stderr
    in_two_processes(file)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text("utf-8"))["global_step"] == 4
