"""The pipeline runner with steps that write a line each: done steps are left out, changed and broken ones run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.core.errors import UserError
from danlu.launch.child import run_child
from danlu.launch.pipeline_file import read_pipeline
from danlu.launch.plan import plan_steps

ADD = "echo {text} >> ${{output_dir}}.log"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Three steps that each append a line to a log of their own: a, b (after a), c (by itself)."""
    path = tmp_path / "p.yaml"
    path.write_text(f"""name: p
output_dir: {tmp_path}/out
steps:
  - name: a
    run: command
    command: {ADD.format(text="a")}
    inputs: [{tmp_path}/input.txt]
  - name: b
    run: command
    command: echo from ${{steps.a.output_dir}} >> ${{output_dir}}.log
  - name: c
    run: command
    command: {ADD.format(text="c")}
""", encoding="utf-8")
    (tmp_path / "input.txt").write_text("1")
    return path


def counts(pipeline: Path) -> dict[str, int]:
    """How often each step ran."""
    logs = {one: pipeline.parent / "out" / f"{one}.log" for one in "abc"}
    return {one: len(log.read_text().splitlines()) if log.exists() else 0 for one, log in logs.items()}


def statuses(pipeline: Path) -> dict[str, str]:
    summary = json.loads((pipeline.parent / "out" / "summary.json").read_text())
    return {one["step"]: one["status"] for one in summary["steps"]}


def run(pipeline: Path, *words: str) -> int:
    return main(["run", str(pipeline), *words])


def test_done_steps_are_left_out(pipeline: Path) -> None:
    assert run(pipeline) == 0
    assert counts(pipeline) == {"a": 1, "b": 1, "c": 1}
    assert run(pipeline) == 0
    assert counts(pipeline) == {"a": 1, "b": 1, "c": 1}
    assert set(statuses(pipeline).values()) == {"already done"}


def test_a_changed_input_runs_the_step_and_what_depends_on_it(pipeline: Path) -> None:
    """The content of input.txt changes: a runs, b (which refers to a) too, c does not."""
    run(pipeline)
    (pipeline.parent / "input.txt").write_text("2")
    assert run(pipeline) == 0
    assert counts(pipeline) == {"a": 2, "b": 2, "c": 1}


def test_a_changed_key_runs_only_its_step(pipeline: Path) -> None:
    run(pipeline)
    assert run(pipeline, "c.command=echo new >> ${output_dir}.log") == 0
    assert counts(pipeline) == {"a": 1, "b": 1, "c": 2}


def test_force_from_only(pipeline: Path) -> None:
    run(pipeline)
    run(pipeline, "--force", "a")
    assert counts(pipeline) == {"a": 2, "b": 2, "c": 1}
    run(pipeline, "--only", "b")
    assert counts(pipeline) == {"a": 2, "b": 3, "c": 1}
    run(pipeline, "--from", "b")
    assert counts(pipeline) == {"a": 2, "b": 4, "c": 2}
    run(pipeline, "--force")
    assert counts(pipeline) == {"a": 3, "b": 5, "c": 3}


def test_dry_run_runs_nothing(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pipeline, "--dry-run") == 0
    assert counts(pipeline) == {"a": 0, "b": 0, "c": 0}
    assert not (pipeline.parent / "out").exists()
    assert f"echo from {pipeline.parent}/out/a" in capsys.readouterr().err


def test_the_first_failure_stops_and_is_taken_up_again(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """b needs a file that is missing: exit code 7, c is not reached; once the file is there the run goes on at b."""
    gate = pipeline.parent / "gate"
    text = pipeline.read_text().replace("echo from", f"test -e {gate} || exit 7; echo from")
    pipeline.write_text(text)
    assert run(pipeline) == 7
    assert counts(pipeline) == {"a": 1, "b": 0, "c": 0}
    assert statuses(pipeline) == {"a": "done", "b": "failed", "c": "not run"}
    assert "step b" in capsys.readouterr().err
    gate.touch()
    assert run(pipeline) == 0
    assert counts(pipeline) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("steps.a.output_dir", "steps.aa.output_dir", ["p.yaml:10", 'step "aa"', 'did you mean "a"']),
    ("steps.a.output_dir", "steps.a.output", ["p.yaml:10", 'key "output"', 'did you mean "output_dir"']),
    ("steps.a.output_dir", "steps.c.output_dir", ["p.yaml:10", 'step "c"', "not before"]),
    ("${output_dir}.log\n    inputs", "${outputdir}.log\n    inputs", ["p.yaml:6", 'did you mean "output_dir"']),
    ("inputs:", "input:", ["p.yaml:7", 'did you mean "inputs"']),
    ("run: command\n    command: echo from", "run: comand\n    command: echo from", ["p.yaml:9", '"command"']),
    ("name: c", "name: b", ["p.yaml:11", "two steps"]),
    ("output_dir: ", "outputdir: ", ["p.yaml:2", 'did you mean "output_dir"']),
])
def test_mistakes_are_named_with_their_line(pipeline: Path, old: str, new: str, expected: list[str]) -> None:
    text = pipeline.read_text()
    assert old in text
    pipeline.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        plan_steps(read_pipeline(pipeline, []))
    for part in expected:
        assert part in str(caught.value), str(caught.value)


def test_the_verbs_own_mistakes_carry_the_pipelines_line(tmp_path: Path) -> None:
    """A wrong value of a training key is found before any step runs, at its line in the pipeline."""
    path = tmp_path / "p.yaml"
    path.write_text("name: p\ndefaults:\n  learning_rate: fast\nsteps:\n  - name: one\n    run: train\n"
                    "    stage: sft\n    lora_rank: many\n")
    with pytest.raises(UserError) as caught:
        plan_steps(read_pipeline(path, []))
    assert f"{path}:3" in str(caught.value) and f"{path}:8" in str(caught.value)
    path.write_text("name: p\nsteps:\n  - name: one\n    run: train\n    lora_rnk: 8\n")
    with pytest.raises(UserError, match='p.yaml:5: step one: train has no key "lora_rnk"\n.*lora_rank'):
        read_pipeline(path, [])


def test_defaults_reach_the_verbs_that_read_them(tmp_path: Path) -> None:
    """learning_rate goes to training only, template to training and evaluation; a step's own key wins."""
    path = tmp_path / "p.yaml"
    path.write_text("name: p\ndefaults: {learning_rate: 0.1, template: default}\nsteps:\n"
                    "  - {name: one, run: train, learning_rate: 0.2}\n  - {name: two, run: train}\n"
                    "  - {name: three, run: eval, task: exact}\n  - {name: four, run: command, command: 'true'}\n")
    one, two, three, four = (step.values for step in plan_steps(read_pipeline(path, ["two.seed=7"])))
    assert (one["learning_rate"], two["learning_rate"]) == (0.2, 0.1)
    assert "learning_rate" not in three and three["template"] == "default"
    assert set(four) == {"output_dir", "command"}
    assert two["seed"] == "7" and "seed" not in one


def test_unknown_steps_and_keys_on_the_command_line(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--only", "d"], ["d.command=x"], ["learning_rte=1"], ["--from"]):
        assert run(pipeline, *words) == 2, words
        assert "command line" in capsys.readouterr().err
    assert counts(pipeline) == {"a": 0, "b": 0, "c": 0}


def test_only_needs_what_came_before(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pipeline, "--only", "b") == 2
    assert "step a is not done" in capsys.readouterr().err


def test_a_child_reports_its_cost() -> None:
    """A child that fills 64 MiB and computes for 0.2 s of CPU time says so."""
    code = "import time; x = bytearray(b'1') * 2**26\nwhile time.process_time() < 0.2: pass"
    finished = run_child([sys.executable, "-c", code])
    assert finished.code == 0 and finished.cpu_seconds >= 0.2 and finished.peak_mib > 64


def test_ctrl_c_reaches_the_child_once(tmp_path: Path) -> None:
    """The child counts its signals; the runner exits with 130 and marks the step as interrupted."""
    child = tmp_path / "child.py"
    child.write_text("import signal, sys, time, pathlib\nseen = []\n"
                     "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
                     f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
                     "while not seen: time.sleep(0.02)\ntime.sleep(0.3)\n"
                     f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(str(len(seen)))\nsys.exit(130)\n")
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\noutput_dir: {tmp_path}/out\nsteps:\n"
                    f"  - {{name: one, run: command, command: [python, {child}]}}\n")
    with subprocess.Popen([sys.executable, "-m", "danlu", "run", str(path)], start_new_session=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as runner:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(runner.pid, signal.SIGINT)
        _, said = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert b"interrupted" in said
    assert (tmp_path / "seen").read_text() == "1"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"][0]["status"] == "interrupted"
