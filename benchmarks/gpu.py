"""danlu on one GPU: what it is, whether its results are right there, how fast it is, which goals are met.

    python -m benchmarks.gpu [--only NAME ...] [--list] [--toy --out FOLDER]

Ends in under 8 minutes on a GPU of the H200 class, with random weights of 0.5B, 1.5B and 7-8B shapes that are made on
the device. Each job has a time limit; one that fails or runs out of memory is noted, and the next one follows.
Results go to benchmarks/results/gpu.{json,md} after every job; with `--only` the lines of other jobs stay. `--toy` runs
all of it on a CPU with tiny shapes: it shows that the script works, its numbers mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu_equality import CHECKS
from benchmarks.gpu_models import Place
from benchmarks.gpu_report import report
from benchmarks.gpu_timings import ONLINES, TRAININGS, generation, online, training

RESULTS = Path(__file__).parent / "results"
LIMIT = 465.0
"""Seconds from the start of the process after which no job goes on."""
SHORTEST = 8.0
"""Seconds that must be left for a job to begin."""
Record = dict[str, Any]


class TimeUp(BaseException):
    """A job has used its seconds. Not an Exception, so that no library swallows it."""


@dataclass(frozen=True, slots=True)
class Job:
    """Part of the run: lines for one section of the report, within so many seconds."""

    section: str
    seconds: float
    run: Callable[[Place, Record], Iterator[dict[str, Any]]]


def jobs() -> dict[str, Job]:
    """Return all jobs, what matters most first."""
    checks = {name: Job("equality", 90 if name == "compile" else 40, lambda place, _, check=check: check(place))
              for name, check in CHECKS.items()}
    late = {name: checks.pop(name) for name in ("compile",)}
    timed = {name: Job("timings", 50, lambda place, _, task=task: training(place, task))
             for name, task in TRAININGS.items()}
    last = {name: timed.pop(name) for name in ("lora-0.5B", "lora-8B")}
    sampled = {name: Job("timings", 75, lambda place, _, task=task: online(place, task))
               for name, task in ONLINES.items()}
    made = Job("timings", 40, lambda place, record: generation(place, record["facts"]["copy_bytes_per_second"]))
    return {**checks, **timed, "generation": made, **sampled, **last, **late}


def facts(place: Place) -> Record:
    """Return what the numbers depend on, with the measured peak of products and of copies."""
    on_gpu = place.device.type == "cuda"
    known: Record = {
        "date": date.today().isoformat(), "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "driver": _driver() if on_gpu else "", "cuda": torch.version.cuda or "", "toy": place.toy,
        "versions": {name: version(name) for name in ("danlu", "torch", "transformers", "peft", "bitsandbytes")},
        "matrix_dtype": str(place.dtype).removeprefix("torch."), "cores": os.cpu_count()}
    if on_gpu:
        known["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
    size = place.small(8192, 256)
    one, other = (torch.randn(size, size, device=place.device).to(place.dtype) for _ in range(2))
    known["matrix_flops_per_second"] = 2 * size**3 / _fastest(place, partial(torch.mm, one, other))
    source = torch.zeros(place.small(2**30, 2**22), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    known["copy_bytes_per_second"] = 2 * source.numel() / _fastest(place, partial(target.copy_, source))
    return known


def _driver() -> str:
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.strip().split("\n")[0]


def _fastest(place: Place, call: Callable[[], object]) -> float:
    """Return the seconds of one call in the fastest of some runs of some calls."""
    best, often = float("inf"), place.small(10, 3)
    for _ in range(often):
        place.wait()
        began = time.perf_counter()
        for _ in range(often):
            call()
        place.wait()
        best = min(best, (time.perf_counter() - began) / often)
    return best


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the block when it takes longer; an alarm that was set before goes on after it."""
    handler = signal.signal(signal.SIGALRM, _time_up)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


def _time_up(number: int, frame: FrameType | None) -> None:
    raise TimeUp


def run_job(name: str, job: Job, place: Place, record: Record, left: float) -> None:
    """Run one job and note its lines, its seconds and what went wrong."""
    lines: list[dict[str, Any]] = []
    entry: Record = {"section": job.section, "lines": lines, "problem": "", "seconds": 0.0}
    record["jobs"][name] = entry
    began = time.perf_counter()
    seconds = min(job.seconds, left)
    try:
        with time_limit(seconds):
            for line in job.run(place, record):
                lines.append(line)
    except TimeUp:
        entry["problem"] = f"stopped after {seconds:.0f} s"
    except Exception as error:  # the edge of a job: whatever it is, it is noted and the next job follows
        entry["problem"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        entry["traceback"] = traceback.format_exc()[-3000:]
    entry["seconds"] = time.perf_counter() - began
    print(f"{name}: {len(lines)} lines in {entry['seconds']:.1f} s {entry['problem']}", file=sys.stderr, flush=True)


def is_broken(place: Place) -> bool:
    """Return whether the device refuses all further work in this process, as after an illegal memory access."""
    try:
        place.clear()
        place.wait()
    except RuntimeError:
        return True
    return False


def run_all(chosen: list[str], place: Place, record: Record, out: Path, began: float) -> None:
    """Run the chosen jobs; go on in a new process when one leaves the device unusable."""
    known = jobs()
    for at, name in enumerate(chosen):
        left = LIMIT - (time.time() - began)
        if left < SHORTEST:
            record["jobs"][name] = {
                "section": known[name].section, "lines": [], "problem": "no time left", "seconds": 0.0}
            continue
        run_job(name, known[name], place, record, left)
        record["seconds"] = sum(job["seconds"] for job in record["jobs"].values())
        write(out, record)
        if is_broken(place) and chosen[at + 1:]:
            toy = ["--toy"] if place.toy else []
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *toy, "--out", str(out), "--began",
                                      str(began), "--only", *chosen[at + 1:]])


def write(out: Path, record: Record) -> None:
    """Write gpu.json and gpu.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text("\n".join(report(record)) + "\n", encoding="utf-8")


def earlier(out: Path, known: Record) -> Record:
    """Return the jobs of an earlier run on the same device with the same versions; none otherwise."""
    path = out / "gpu.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text("utf-8"))
    alike = all(found["facts"][key] == known[key] for key in ("device", "toy", "versions"))
    return found["jobs"] if alike else {}


def main(arguments: list[str] | None = None) -> int:
    """Run the jobs and write the report; 1 when an equality check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], choices=list(jobs()), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names of all jobs")
    parser.add_argument("--toy", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(jobs()))
        return 0
    if not asked.toy and not torch.cuda.is_available():
        parser.error("no GPU is found; --toy runs everything on a CPU")
    if asked.toy and asked.out is None:
        parser.error("--toy needs --out, as its numbers are no results")
    out: Path = asked.out or RESULTS
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DANLU_CACHE"] = str(Path(folder) / "cache")
        place = Place(torch.device("cpu" if asked.toy else "cuda"), asked.toy, Path(folder))
        known = facts(place)
        place.peak = known["matrix_flops_per_second"]
        record: Record = {"facts": known, "jobs": earlier(out, known) if asked.only else {}, "seconds": 0.0}
        run_all(asked.only or list(jobs()), place, record, out, asked.began)
    write(out, record)
    print("\n".join(report(record)))
    return int(any(not line["ok"] for job in record["jobs"].values() for line in job["lines"] if "ok" in line))


if __name__ == "__main__":
    sys.exit(main())
