"""The report of benchmarks/gpu.py: facts, checks, timings and goals as Markdown, from its record alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
BAICHUAN2 = 7.36
"""Samples a second of the documents' Baichuan2-7B QLoRA run on four A100 (1024 tokens each)."""
NOTES = (
    "tok/s counts the tokens of the data, a shared prompt once for each answer; of rollouts, those of the answers. The",
    "share of the peak counts the formula of benchmarks/flops.py (2 F and the adapters for LoRA, 3 F for full), in",
    "which a shared prompt counts once and nothing recomputed counts.")


@dataclass(frozen=True, slots=True)
class Goal:
    """A number to reach. `at_most` turns it round; `shown` is how it is written."""

    text: str
    value: Callable[[Record], float | None]
    target: float
    at_most: bool = False
    shown: str = ".0%"


def of(job: str, key: str, load: str | None = None) -> Callable[[Record], float | None]:
    """Return what reads one number of a job's first line, or of the line of a workload."""
    def read(record: Record) -> float | None:
        lines = record["jobs"].get(job, {}).get("lines", [])
        found = [line for line in lines if load is None or line.get("load") == load]
        value = found[0].get(key) if found else None
        return None if value is None else float(value)

    return read


def over(above: Callable[[Record], float | None], below: Callable[[Record], float | None],
         ) -> Callable[[Record], float | None]:
    """Return what reads the quotient of two numbers."""
    def read(record: Record) -> float | None:
        one, other = above(record), below(record)
        return None if one is None or not other else one / other

    return read


GOALS = (
    Goal("SFT LoRA r16, 7B, 4096 packed: share of the peak", of("lora-7B", "share_of_peak", "uniform"), 0.65),
    Goal("SFT full, 1.5B, 4096 packed: share of the peak", of("full-1.5B", "share_of_peak", "uniform"), 0.55),
    Goal("SFT full, 0.5B, 4096 packed: share of the peak", of("full-0.5B", "share_of_peak", "uniform"), 0.45),
    Goal("SFT LoRA r16, 1.5B: share of the peak", of("lora-1.5B", "share_of_peak", "uniform"), 0.52),
    Goal("SFT LoRA r16, 0.5B: share of the peak", of("lora-0.5B", "share_of_peak", "uniform"), 0.40),
    Goal("SFT LoRA r16, 8B: share of the peak", of("lora-8B", "share_of_peak", "uniform"), 0.65),
    Goal("QLoRA over LoRA, 7B: tokens a second", over(
        of("qlora-7B", "tokens_per_second", "uniform"), of("lora-7B", "tokens_per_second", "uniform")), 0.95,
        shown=".2f"),
    Goal("Baichuan2-7B QLoRA r64, 1024 tokens a sample: samples a second (four A100: 7.36)",
         of("baichuan2", "samples_per_second"), BAICHUAN2, shown=".2f"),
    Goal("DPO LoRA, 7B, shared prompts, cached reference: share of the peak", of("dpo-7B", "share_of_peak"), 0.60),
    Goal("RM LoRA, 1.5B: share of the peak", of("rm-1.5B", "share_of_peak"), 0.50),
    Goal("PPO LoRA, 1.5B, 512 answers of 256, 4 epochs: seconds a step", of("ppo-1.5B", "seconds"), 30.0, True, ".1f"),
    Goal("the whole script: seconds", lambda record: record["seconds"], 480.0, True, ".0f"),
)


def goals(record: Record) -> list[dict[str, Any]]:
    """Return each goal with what was got and whether it is met; None where nothing was measured."""
    found = []
    for goal in GOALS:
        got = goal.value(record)
        met = None if got is None else got <= goal.target if goal.at_most else got >= goal.target
        found.append({"goal": goal.text, "target": goal.target, "got": got, "met": met, "shown": goal.shown,
                      "sign": "<=" if goal.at_most else ">="})
    return found


def report(record: Record) -> list[str]:
    """Return the Markdown."""
    return [*_facts(record), *_goals(record), *_checks(record), *_timings(record), *_problems(record)]


def _facts(record: Record) -> Iterator[str]:
    known = record["facts"]
    yield from ("# danlu on one GPU", "")
    if known["toy"]:
        yield from ("A run with tiny shapes on a CPU: it shows that the script works, its numbers mean nothing.", "")
    memory = f", {known['memory_gib']:.0f} GiB" if "memory_gib" in known else ""
    driver = f", driver {known['driver']}, CUDA {known['cuda']}" if known["driver"] else ""
    yield (f"`python -m benchmarks.gpu`, {known['date']}: {known['device']}{memory}{driver}; "
           + ", ".join(f"{name} {number}" for name, number in known["versions"].items())
           + f". {known['matrix_dtype']} products {known['matrix_flops_per_second'] / 1e12:.3g} TFLOP/s and copies "
           f"{known['copy_bytes_per_second'] / 1e12:.3g} TB/s, measured. {record['seconds']:.0f} s for all.")
    yield from ("", *NOTES, "")


def _goals(record: Record) -> Iterator[str]:
    yield from ("## Goals", "", "| goal | wanted | got | met |", "|---|---|---|---|")
    for one in goals(record):
        got = "not measured" if one["got"] is None else format(one["got"], one["shown"])
        met = {None: "", True: "yes", False: "no"}[one["met"]]
        yield f"| {one['goal']} | {one['sign']} {format(one['target'], one['shown'])} | {got} | {met} |"
    yield ""


def _lines(record: Record, section: str) -> Iterator[dict[str, Any]]:
    return (line for job in record["jobs"].values() if job["section"] == section for line in job["lines"])


def _checks(record: Record) -> Iterator[str]:
    yield from ("## Equality", "", "| check | got | at most | |", "|---|---|---|---|")
    for line in _lines(record, "equality"):
        yield f"| {line['check']} | {line['got']:.2g} | {line['tolerance']:.2g} | {'PASS' if line['ok'] else 'FAIL'} |"
    yield ""


def _timings(record: Record) -> Iterator[str]:
    yield from ("## Timings", "", "| run | model | load | tok/s | samples/s | of peak | GiB | step s | how |",
                "|---|---|---|---|---|---|---|---|---|")
    for line in _lines(record, "timings"):
        share = f"{line['share_of_peak']:.0%}" if line.get("share_of_peak") is not None else ""
        sampling = f"sampling {line['sampling_seconds']:.1f} s" if "sampling_seconds" in line else ""
        floor = f"{line['of_reading_weights']:.0%} of reading the weights once a token" if (
            "of_reading_weights" in line) else ""
        how = "; ".join(filter(None, [line["setting"], line["layout"], sampling, floor, *line["refused"]]))
        yield (f"| {line['run']} | {line['model']} | {line['load']} | {line['tokens_per_second']:,.0f} | "
               f"{line['samples_per_second']:.2f} | {share} | {line['peak_memory']:.1f} | {line['seconds']:.3g} | "
               f"{how} |")
    yield ""


def _problems(record: Record) -> Iterator[str]:
    wrong = {name: job["problem"] for name, job in record["jobs"].items() if job["problem"]}
    if wrong:
        yield from ("## Not done", "", *(f"- `{name}`: {' '.join(what.split())[:300]}" for name, what in wrong.items()))
