"""The benchmark of danlu alone runs, and its FLOPs are those of the formula."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    lines = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if line.startswith("| sft")]
    assert [line[1] for line in lines] == ["full", "lora", "qlora"]
    assert all(float(line[4].replace(",", "")) > 0 for line in lines)
    assert 0.7 < float(lines[0][9]) < 1.05
