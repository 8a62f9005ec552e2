"""rollouts.jsonl: lines are appended, cut back to a checkpoint, and half lines of a killed run go."""

import json
from pathlib import Path

import numpy as np
import pytest

from danlu.core.run_dir import RunDir
from danlu.stages.rollout_log import RolloutLog


def lines(folder: Path) -> list[tuple[int, str]]:
    text = (folder / "rollouts.jsonl").read_text(encoding="utf-8")
    return [(row["step"], row["answer"]) for row in map(json.loads, text.splitlines())]


def test_lines_are_appended_with_their_step(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path)
    log.write(1, [{"answer": "蓝色", "reward": np.float32(0.5)}, {"answer": "a\nb\u2028c", "reward": 1.0}])
    log.write(2, [{"answer": "c"}])
    text = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert text.startswith('{"step": 1, "answer": "蓝色", "reward": 0.5}\n')
    assert [json.loads(line)["answer"] for line in text.split("\n")[:-1]] == ["蓝色", "a\nb\u2028c", "c"]


def test_rewind_cuts_later_steps_and_half_lines_once(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.write(step, [{"answer": f"{step}{name}"} for name in "ab"])
    path = tmp_path / "rollouts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + '{"step": 1, "answer": "蓝'.encode()[:-1])
    log.rewind(2)
    assert lines(tmp_path) == [(1, "1a"), (1, "1b"), (2, "2a"), (2, "2b")]
    changed = path.stat().st_mtime_ns, path.stat().st_ino
    log.rewind(2)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == changed
    log.rewind(0)
    assert lines(tmp_path) == []


def test_a_resumed_run_writes_its_steps_again(tmp_path: Path) -> None:
    """Killed in step 4, gone on from the checkpoint of step 2: the file is that of a run that was never stopped."""
    never, killed = tmp_path / "never", tmp_path / "killed"
    for folder, steps in ((never, (1, 2, 3, 4)), (killed, (1, 2, 3))):
        folder.mkdir()
        log = RolloutLog(folder)
        for step in steps:
            log.write(step, [{"answer": f"answer {step}"}])
    again = RolloutLog(killed)
    for step in (3, 4):
        again.write(step, [{"answer": f"answer {step}"}])
    assert (killed / "rollouts.jsonl").read_bytes() == (never / "rollouts.jsonl").read_bytes()


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    log = RolloutLog(tmp_path)
    log.write(1, [{"answer": "a"}])
    log.rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_begins_anew_clears_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "rollouts.html").write_text("old")
    RunDir.create(tmp_path).begin()
    assert not (tmp_path / "rollouts.jsonl").exists() and not (tmp_path / "rollouts.html").exists()
