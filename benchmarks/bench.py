"""danlu alone: speed, share of the machine's peak, FLOPs against the formula, memory and start-up, stage by stage.

    python -m benchmarks.bench [--quick | --whole] [--only NAME ...] [--steps 5] [--warm 2] [--threads N]

Every registered stage that benchmarks/measure.py has data for is measured by full, lora and qlora, and by full with the
unfavourable lengths, which stand first, and with the large vocabulary; `--whole` adds all other combinations. Each runs
in fp32 and, where the processor multiplies bfloat16 itself, in bf16. --only takes beginnings of their names, such as
sft/full/8k; lines that are measured again replace the former ones. The peaks of matrix products in both formats are
measured before each run. Results go to benchmarks/results/bench.{json,md}; `--quick` runs tiny shapes, prints only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

import torch
import yaml

from benchmarks.flops import counted_flops, matrix_peak, padded_share, step_flops
from benchmarks.measure import (
    BENCH,
    KINDS,
    METHODS,
    RESULTS,
    ROOT,
    Measured,
    Task,
    Timing,
    danlu_config,
    fresh,
    keep_results,
    machine,
    replace_between,
    run_danlu,
)
from benchmarks.workload import Workload, make_workload
from danlu.stages.base import STAGES

LEGEND = (
    "tok/s counts real tokens: of both full sequences of a pair, of PPO and GRPO those of the answers. GFLOP/s and",
    "the share of the matrix-product peak count the formula of benchmarks/flops.py, in which a shared prompt counts",
    "once and nothing is recomputed. `counted` is what torch counts over that formula, attention left out on both",
    "sides; `padding` is what a padded batch would add; `first s` goes from the command to the end of the first step,",
    "in fp32.")
FORMULAS = ("pt", "sft", "rm", "dpo", "kto", "ppo", "grpo")


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table."""

    stage: str
    method: str
    shape: str
    lengths: str

    @property
    def name(self) -> str:
        """Return stage/method/vocabulary/lengths."""
        return f"{self.stage}/{self.method}/{self.shape}/{self.lengths}"

    @property
    def is_usual(self) -> bool:
        """Return whether at most one thing differs from full training, 8k words and the stage's common lengths."""
        common = "uniform" if self.stage == "pt" else "log-normal"
        return (self.method != "full") + (self.shape != "8k") + (self.lengths != common) <= 1


def cells(extent: str, only: Sequence[str] = ()) -> Iterator[Cell]:
    """Yield the matrix, made of the registry, in one of three extents: quick, usual, whole.

    Pre-training cuts blocks, so that rows' lengths do not matter to it: all of its lines are uniform.
    """
    stages = [stage for stage in STAGES if stage in KINDS and stage in FORMULAS]
    if extent == "quick":
        found = [Cell(stage, method, "tiny", "tiny") for stage in stages for method in METHODS
                 if method == "full" or stage == "sft"]
    else:
        found = [Cell(stage, method, shape, lengths) for lengths in ("uniform", "log-normal") for stage in stages
                 for method in METHODS for shape in ("8k", "152k") if lengths == "uniform" or stage != "pt"]
    yield from (cell for cell in found if (extent != "usual" or cell.is_usual)
                and (not only or any(cell.name.startswith(name) for name in only)))


def measure(cell: Cell, steps: int, warm: int, timing: Timing) -> dict[str, Any]:
    """Run one cell; return its line."""
    is_long = cell.lengths == "uniform" or cell.stage == "pt"
    is_long |= cell.stage == "grpo"  # a group of answers for each row
    task = Task(cell.stage, cell.method, steps, warm, batch=4 if is_long else 8, accumulation=1 if is_long else 2)
    work = make_workload(BENCH / "work", cell.shape, cell.lengths, max(task.rows, 64))
    run, peak = run_at_peak(cell, task, work, timing, "float32")
    size = task.batch * task.accumulation
    batches = [work.rows[at * size:(at + 1) * size] for at in range(warm, steps)]
    block = work.lengths.high
    formula = sum(step_flops(work.shape, cell.stage, cell.method, rows, lora_rank=task.lora_rank, block=block)
                  for rows in batches)
    listed = task.tokens(work, warm)
    tokens = size * block * len(batches) if cell.stage == "pt" else listed
    rows = [row for batch in batches for row in batch]

    def speeds(measured: Measured, its_peak: float) -> dict[str, float]:
        flops = formula * measured.tokens_per_second / listed
        return {"tokens_per_second": measured.tokens_per_second * tokens / listed, "flops_per_second": flops,
                "matrix_peak": its_peak, "share_of_peak": flops / its_peak}

    in_bf16 = speeds(*run_at_peak(cell, task, work, timing, "bfloat16")) if machine()["bf16 in hardware"] else None
    return asdict(cell) | speeds(run, peak) | {
        "bf16": in_bf16, "padding_avoided": padded_share(cell.stage, rows, task.batch),
        "counted": counted(cell, task, work), "peak_memory": run.peak_memory, "first_step": run.first_step,
        "step_seconds": run.step_seconds}


def run_at_peak(cell: Cell, task: Task, work: Workload, timing: Timing, dtype: str) -> tuple[Measured, float]:
    """Return a run in a number format, and the peak of its matrix products just before."""
    peak = matrix_peak(0.2 if cell.shape == "tiny" else 1.0, dtype, cpu_time=timing.cpu_time)
    return run_danlu(task, work, timing, extra_keys(cell, work) | {"bf16": dtype == "bfloat16"}), peak


def extra_keys(cell: Cell, work: Workload) -> dict[str, Any]:
    """Return what a stage needs beside the common configuration: pre-training's blocks are as long as a long row."""
    return {"cutoff_len": work.lengths.high, "packing": True} if cell.stage == "pt" else {}


def counted(cell: Cell, task: Task, work: Workload) -> float | None:
    """Return the counted FLOPs of the second step over the formula's, both without attention; None in 4 bits."""
    if "quantization_bit" in METHODS[cell.method]:
        return None
    output = fresh(BENCH / "runs" / "counted")
    config = output.with_suffix(".yaml")
    keys = danlu_config(task, work, output) | extra_keys(cell, work)
    if cell.stage in ("dpo", "kto"):
        keys["reference_cache"] = False
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    size = task.batch * task.accumulation
    formula = step_flops(work.shape, cell.stage, cell.method, work.rows[size:2 * size], lora_rank=task.lora_rank,
                         attention=False, block=work.lengths.high)
    os.environ["DANLU_CACHE"] = str(fresh(BENCH / "cache"))
    return counted_flops([str(config)]) / formula


def start_up(threads: int) -> float:
    """Return the median seconds of `danlu --help`."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "danlu.cli.main", "--help"], check=True, capture_output=True,
                       env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def first_step_of_a_tiny_run(timing: Timing) -> float:
    """Return the seconds from the command to the end of the first step of a model with 0.1 M parameters."""
    task = Task("sft", "full", 2, 1, batch=4, accumulation=1)
    work = make_workload(BENCH / "work", "tiny", "tiny", task.rows)
    return run_danlu(task, work, replace(timing, cpu_time=False)).first_step


def table(record: dict[str, Any]) -> list[str]:
    """Return the Markdown of the results."""
    hardware = record["machine"]
    lines = [
        "# danlu alone", "",
        f"`make bench`: {hardware['processor']}. `danlu --help`: {record['help_seconds']:.2f} s, first step "
        f"of a run of a tiny model (0.1 M parameters): {record['tiny_first_step']:.1f} s.", *LEGEND, "",
        "| stage | method | vocabulary | lengths | tok/s fp32 | GFLOP/s | of peak | tok/s bf16 | of bf16 peak "
        "| counted | padding | first s | MiB | timed by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for line in record["lines"]:
        memory = f"{line['peak_memory']:,.0f}" if line["peak_memory"] else ""
        ratio = "" if line["counted"] is None else f"{line['counted']:.2f}"
        rough = line.get("bf16")
        in_bf16 = f"{rough['tokens_per_second']:,.0f} | {rough['share_of_peak']:.0%}" if rough else " | "
        lines.append(
            f"| {line['stage']} | {line['method']} | {line['shape']} | {line['lengths']} | "
            f"{line['tokens_per_second']:,.0f} | {line['flops_per_second'] / 1e9:.0f} | {line['share_of_peak']:.0%} | "
            f"{in_bf16} | {ratio} | {line['padding_avoided']:.0%} | {line['first_step']:.1f} | {memory} | "
            f"{line['timed']} |")
    return lines


def main() -> None:
    """Measure the matrix."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", dest="extent", action="store_const", const="quick", default="usual")
    extent.add_argument("--whole", dest="extent", action="store_const", const="whole")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cpu-time", action="store_true", help="a busy machine: one thread, its processor time")
    chosen = parser.parse_args()
    timing = Timing(1 if chosen.cpu_time else chosen.threads, chosen.cpu_time)
    torch.set_num_threads(timing.threads)
    file = RESULTS / "bench.json"
    known = json.loads(file.read_text("utf-8"))["lines"] if file.is_file() and chosen.extent != "quick" else []
    lines = {Cell(*(line[name] for name in ("stage", "method", "shape", "lengths"))).name: line for line in known}
    record: dict[str, Any] = {
        "date": date.today().isoformat(), "machine": machine(), **asdict(timing),
        "help_seconds": start_up(timing.threads), "tiny_first_step": first_step_of_a_tiny_run(timing)}
    order = [cell.name for cell in cells("whole")]
    for cell in cells(chosen.extent, chosen.only):
        lines[cell.name] = measure(cell, chosen.steps, chosen.warm, timing) | {"timed": clock_of(record)}
        print(table(record | {"lines": [lines[cell.name]]})[-1], flush=True)
        if chosen.extent != "quick":  # after each line, so that nothing measured is lost
            write(record | {"lines": [lines[name] for name in order if name in lines]})


def clock_of(record: dict[str, Any]) -> str:
    """Say how a line was timed."""
    kind = "processor time of 1 thread" if record["cpu_time"] else f"{record['threads']} threads"
    return f"{kind}, load {record['machine']['load']}, {record['date']}"


def write(record: dict[str, Any]) -> None:
    """Keep the results as JSON, as a page, and in docs/performance.md."""
    keep_results("bench", record, table(record))
    replace_between(ROOT / "docs/performance.md", "bench", table(record)[2:])


if __name__ == "__main__":
    main()
