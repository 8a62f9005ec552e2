"""A streamed run that is stopped goes on as if it had not been: the same losses, the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from danlu.cli.main import main
from danlu.data.streaming import row_stream
from tests.reading import losses, read_json

LAYOUTS: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft"},
    "packed": {"stage": "sft", "packing": True, "cutoff_len": 96, "per_device_train_batch_size": 2},
    "pt": {"stage": "pt", "cutoff_len": 40, "per_device_train_batch_size": 2},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """90 rows of different lengths in one file of JSON lines."""
    path = tmp_path / "rows.jsonl"
    content = [{"instruction": f"what is {n} {'the sky ' * (n % 5)}", "output": f"blue {n % 7}"} for n in range(90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    return path


def settings(base: Path, rows: Path, out: Path, **keys: Any) -> Path:
    """Write the configuration of a run of eight steps; return its file."""
    config = {
        "model_name_or_path": str(base), "do_train": True, "dataset": str(rows), "streaming": True, "buffer_size": 20,
        "output_dir": str(out), "finetuning_type": "lora", "lora_dropout": 0.1, "learning_rate": 5e-3, "max_steps": 8,
        "logging_steps": 1, "save_steps": 3, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine", **keys}
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(config), "utf-8")
    return file


def assert_same_run(one: Path, other: Path, last: int) -> None:
    """Assert that the last losses and all weights of two runs are equal, bit for bit."""
    assert losses(one)[-last:] == losses(other)[-last:]
    left, right = (load_file(out / "adapter_model.safetensors") for out in (one, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_stream_is_bit_identical(layout: str, tiny_base: Path, rows: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after step 3, in the middle of the second window of 16 rows, with blocks half filled (pt)."""
    monkeypatch.setattr(row_stream, "WINDOW_ROWS", 16)
    never, again = tmp_path / "never", tmp_path / "again"
    assert main(["train", str(settings(tiny_base, rows, never, **LAYOUTS[layout]))]) == 0
    shutil.copytree(never / "checkpoint-3", again / "checkpoint-3")
    assert main(["train", str(settings(tiny_base, rows, again, **LAYOUTS[layout]))]) == 0
    assert len(losses(again)) == 5
    assert_same_run(never, again, 5)
    said = read_json(again / "trainer_state.json"), read_json(never / "trainer_state.json")
    assert said[0]["epoch"] == said[1]["epoch"] and 0 < said[0]["epoch"] < 3


def test_epochs_are_counted_rows(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """90 rows in batches of 8 are 12 steps (the last has 2); without max_steps two epochs are 24, and end at 2.0."""
    out = tmp_path / "out"
    file = settings(tiny_base, rows, out, stage="sft", max_steps=-1, num_train_epochs=2, save_strategy="no")
    assert main(["train", str(file)]) == 0
    state = read_json(out / "trainer_state.json")
    assert (state["global_step"], state["epoch"], state["num_examples_seen"]) == (24, 2.0, 180)
    ledger = [json.loads(line) for line in (out / "data_ledger.jsonl").read_text().splitlines()]
    assert ledger == [{"source": str(rows), "read": 90, "used": 90}]


def test_rows_set_aside_are_evaluated(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = settings(tiny_base, rows, out, stage="sft", val_size=10, do_eval=True, max_steps=2)
    assert main(["train", str(file)]) == 0
    assert read_json(out / "eval_results.json")["eval_loss"] > 0


def test_other_rows_are_another_run(tiny_base: Path, rows: Path, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    """An edited row is found though the file keeps its length; a run that was told to goes on, from the first row."""
    out = tmp_path / "out"
    assert main(["train", str(settings(tiny_base, rows, out, stage="sft", max_steps=3))]) == 0
    rows.write_text(rows.read_text().replace("what is 50", "what is 51"))
    assert main(["train", str(settings(tiny_base, rows, out, stage="sft", overwrite_output_dir=False))]) == 2
    assert "data" in capsys.readouterr().err
    file = settings(tiny_base, rows, out, stage="sft", resume_from_checkpoint=str(out / "checkpoint-3"))
    assert main(["train", str(file)]) == 0
    assert "the stream begins anew" in capsys.readouterr().err


def test_nan_names_the_rows_of_a_stream(tiny_base: Path, rows: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tiny_base, rows, tmp_path / "out", stage="sft", learning_rate=1e38, max_grad_norm=0.0,
                    lr_scheduler_type="constant", optim="sgd", disable_shuffling=True)
    assert main(["train", str(file)]) != 0
    said = capsys.readouterr().err
    assert f"{rows}:" in said.split("step 1/")[-1] and ("nan" in said or "inf" in said)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_stream_is_bit_identical(layout: str, tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """kill -9 behind step 20, with two processes encoding; the same command goes on from the checkpoint at step 15."""
    keys = {**LAYOUTS[layout], "max_steps": 60, "save_steps": 15, "preprocessing_num_workers": 2}
    never, killed = tmp_path / "never", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "danlu", "train"]
    assert subprocess.run([*words, str(settings(tiny_base, rows, never, **keys))], env=environment).returncode == 0
    file, log = settings(tiny_base, rows, killed, **keys), killed / "trainer_log.jsonl"
    child = subprocess.Popen([*words, str(file)], env=environment)
    while not log.exists() or log.read_text().count("\n") < 20:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "checkpoint-60").exists()
    assert subprocess.run([*words, str(file)], env=environment).returncode == 0
    assert losses(killed) == losses(never)
    assert_same_run(never, killed, 60)
