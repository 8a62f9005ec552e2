"""What a pipeline says at its end: a table of its steps, and the same as summary.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step: done, skipped, failed, interrupted, or not reached."""

    step: str
    status: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one line a step: status, wall and CPU seconds, peak memory, key numbers."""
    rows = [("step", "status", "seconds", "cpu s", "peak MiB", "results")]
    rows += [(one.step, one.status, *_costs(one), ", ".join(f"{key} {value:.4g}" for key, value in one.numbers.items()))
             for one in outcomes]
    rows.append(("total", "", f"{sum(one.seconds for one in outcomes):.1f}",
                 f"{sum(one.cpu_seconds for one in outcomes):.1f}",
                 f"{max((one.peak_mib for one in outcomes), default=0):.0f}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(_line(row, widths) for row in rows)


def as_json(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the summary for summary.json."""
    return {
        "pipeline": name, "seconds": round(sum(one.seconds for one in outcomes), 2),
        "steps": [{"step": one.step, "status": one.status, "seconds": round(one.seconds, 2),
                   "cpu_seconds": round(one.cpu_seconds, 2), "peak_mib": round(one.peak_mib, 1),
                   "results": one.numbers} for one in outcomes]}


def _costs(one: Outcome) -> tuple[str, str, str]:
    if not one.seconds:
        return ("", "", "")
    return (f"{one.seconds:.1f}", f"{one.cpu_seconds:.1f}", f"{one.peak_mib:.0f}" if one.peak_mib else "")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, status, *costs, results = row
    numbers = [cost.rjust(width) for cost, width in zip(costs, widths[2:], strict=True)]
    return "  ".join([name.ljust(widths[0]), status.ljust(widths[1]), *numbers, results]).rstrip()
