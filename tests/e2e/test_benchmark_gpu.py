"""The GPU benchmark runs whole with tiny shapes on a CPU: every job has numbers, every equality check holds."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.flops import tree
from benchmarks.gpu import Job, jobs, main, run_job
from benchmarks.gpu_models import SHAPES, TIED, Method, Place, Rows, formula, random_model
from benchmarks.gpu_report import goals
from benchmarks.gpu_timings import TRAININGS, Training, training, uniform
from benchmarks.workload import Shape
from danlu.core.stream import Example
from danlu.models.stream_tensors import StreamTensors

ROOT = Path(__file__).resolve().parents[2]


def test_toy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs but the slow torch.compile: numbers in each, checks that hold, a table of goals without gaps."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    names = [name for name in jobs() if name != "compile"]
    assert main(["--toy", "--out", str(tmp_path), "--only", *names]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert list(record["jobs"]) == names
    assert not {name: job["problem"] for name, job in record["jobs"].items() if job["problem"] or not job["lines"]}
    assert record["facts"]["matrix_flops_per_second"] > 0 and record["facts"]["copy_bytes_per_second"] > 0
    checks, timings = ([line for job in record["jobs"].values() if job["section"] == section for line in job["lines"]]
                       for section in ("equality", "timings"))
    for line in checks:
        assert line["ok"] and 0 <= line["got"] <= line["tolerance"], line
    for line in timings:
        assert line["tokens_per_second"] > 0 and line["samples_per_second"] > 0, line
        assert math.isfinite(line.get("loss", 0.0)) and "padded" not in line["layout"], line
    assert all(one["got"] is not None for one in goals(record))
    table = (tmp_path / "gpu.md").read_text("utf-8")
    assert table.count("PASS") == len(checks) and "FAIL" not in table


@pytest.mark.slow
def test_toy_compile(tmp_path: Path) -> None:
    """A policy under torch.compile learns what it learns without."""
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(tmp_path), "--only", "compile"],
                         cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["jobs"]["compile"]["lines"]
    assert len(lines) == 1 and lines[0]["ok"]


def test_too_little_memory_takes_the_next_setting(tmp_path: Path) -> None:
    """The first setting runs out of memory: the line tells so and comes from the second."""
    calls = []

    def load(place: Place, name: str) -> Rows:
        calls.append(name)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return uniform(place, name)

    place = Place(torch.device("cpu"), True, tmp_path, peak=1e12)
    task = Training("7B", Method("lora"), {"uniform": load}, ladder=((64, False), (32, True)))
    line, = training(place, task)
    assert line["refused"] == ["64 tokens a pass: out of memory"]
    assert line["setting"] == "32 tokens a pass, activations computed again"


def test_a_job_that_fails_is_noted_and_one_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    """Lines that a job gave before it failed or was stopped stay."""
    def broken(place: Place, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        raise ValueError("no such kernel")

    def endless(place: Place, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"number": 2}
        while True:
            time.sleep(0.01)

    place, record = Place(torch.device("cpu"), True, tmp_path), {"jobs": {}}
    run_job("broken", Job("timings", 60, broken), place, record, 60)
    run_job("endless", Job("timings", 60, endless), place, record, 0.2)
    found = {name: (job["lines"], job["problem"]) for name, job in record["jobs"].items()}
    assert found == {"broken": ([{"number": 1}], "ValueError: no such kernel"),
                     "endless": ([{"number": 2}], "stopped after 0 s")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU the script names --toy instead of failing inside torch."""
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "--toy" in capsys.readouterr().err


def test_formula_by_hand() -> None:
    """One layer of width 2, one head, inner 3, vocabulary 5, a prompt of 1 and an answer of 2 tokens.

    Nb = 2*4 + 2*2*2 + 3*2*3 = 34; pairs = 1/2 + 2*1 + 4/2 = 4.5; Fb = 2*34*3 + 4*1*2*4.5 = 240; Fh = 2*10*2 = 40.
    LoRA of rank 1: 2*(2+2) + 2*(2+2) + 3*(2+3) = 31 weights, 6*31*3 = 558 more.
    """
    shape, work = Shape(5, 2, 1, 1, 1, 3), tree(1, 2)
    assert formula(shape, work, Method("full")) == 3 * 280
    assert formula(shape, work, Method("lora", rank=1)) == 2 * 280 + 558
    assert formula(shape, work, Method("lora", rank=1), head=False) == 2 * 240 + 558


def test_workloads_are_what_the_formula_counts(tmp_path: Path) -> None:
    """Tokens and supervised rows of the examples are those of the pass that the share of the peak is computed from."""
    place = Place(torch.device("cpu"), True, tmp_path)
    for task in TRAININGS.values():
        for load in task.loads.values():
            rows = load(place, task.model)
            stream = StreamTensors.of(rows.examples)
            tokens = stream.tree.num_tokens if stream.tree is not None else stream.num_tokens
            assert tokens == rows.work.tokens
            assert 0 <= rows.work.rows - stream.num_rows <= len(rows.examples)
            assert all(isinstance(one, Example) for one in rows.examples)


def test_shapes_are_those_they_are_named_after(tmp_path: Path) -> None:
    """The models of every shape, built without memory, hold the matrices of the formula and their norms: no more."""
    place = Place(torch.device("meta"), False, tmp_path)
    for name, shape in SHAPES.items():
        model = random_model(place, name, torch.bfloat16)
        held = sum(parameter.numel() for parameter in model.parameters())
        norms = (2 * shape.layers + 1) * shape.hidden
        assert held == shape.body + (1 if name in TIED else 2) * shape.head + norms, name
        assert next(model.parameters()).dtype == torch.bfloat16
    assert [round(shape.body / 1e9, 3) for shape in SHAPES.values()] == [0.358, 1.310, 6.525, 6.979, 6.476]
