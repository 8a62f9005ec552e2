"""The benchmark of danlu alone runs, and its FLOPs are those of the formula."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench import table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_bench() -> None:
    """SFT by every method has a line; full fine-tuning does at most 5 % more than the formula.

    It may do less: positions of the last layer that no loss reads are dropped.
    """
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--quick", "--only", "sft", "--threads", "1", "--steps", "3"],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [cells(line) for line in run.stdout.splitlines() if line.startswith("| sft")]
    header = table({"machine": {"processor": ""}, "help_seconds": 0.0, "tiny_first_step": 0.0, "lines": []})[-2]
    method, speed, ratio = (cells(header).index(name) for name in ("method", "tok/s fp32", "counted"))
    assert [line[method] for line in lines] == ["full", "lora", "qlora"]
    assert all(float(line[speed].replace(",", "")) > 0 for line in lines)
    assert 0.7 < float(lines[0][ratio]) < 1.05


def cells(line: str) -> list[str]:
    """Return the columns of a line of a Markdown table."""
    return line.strip("| ").split(" | ")
