"""A pipeline as one HTML page: what became of each step, every curve, the answers side by side. Loads nothing."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.core.run_dir import LOG_FILE, ROLLOUT_PAGE
from danlu.data.microscope.frame import STYLE, curve, document
from danlu.engine.plots import drawn, points_of
from danlu.launch.compare import Comparison, side_by_side, told
from danlu.launch.plan import Planned
from danlu.launch.summary import Outcome

PAGE = "pipeline.html"
DONE = ("done", "already done")
PAGE_STYLE = STYLE + """
th { text-align: left; padding-right: .8rem; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.failed, .interrupted, .wrong { color: var(--cut); } .answers td { vertical-align: top; min-width: 10rem; }
.answers { font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
"""


def pipeline_page(name: str, base: Path, steps: Sequence[Planned], outcomes: Sequence[Outcome]) -> str:
    """Return the page of a pipeline whose folder is `base`; links are relative to it.

    outcomes  one for each step, in their order
    """
    pairs = list(zip(steps, outcomes, strict=True))
    return document(f"pipeline {name}", [
        _table(outcomes), *(_section(base, step, outcome) for step, outcome in pairs)], PAGE_STYLE)


def _table(outcomes: Sequence[Outcome]) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("step", "status", "seconds", "cpu s", "peak MiB", "results"))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(map(_row, outcomes))}</table></div>'


def _row(one: Outcome) -> str:
    costs = "".join(f'<td class="number">{value:,.{digits}f}</td>' if value else "<td></td>"
                    for value, digits in ((one.seconds, 1), (one.cpu_seconds, 1), (one.peak_mib, 0)))
    numbers = ", ".join(f"{key} {value:.4g}" for key, value in one.numbers.items())
    return (f'<tr><td><a href="#{escape(one.step)}">{escape(one.step)}</a></td>'
            f'<td class="{escape(one.status)}">{escape(one.status)}</td>{costs}<td>{escape(numbers)}</td></tr>')


def _section(base: Path, step: Planned, outcome: Outcome) -> str:
    is_fresh = outcome.status in (*DONE, "done earlier", "begun earlier", "running", "failed", "interrupted")
    files = [base / "steps" / f"{step.name}.yaml", *_files(step.folder)] if is_fresh else []
    links = " · ".join(_link(base, path) for path in files if path.is_file())
    curves = "".join(_curves(step.folder)) if is_fresh else ""
    answers = _answers(step) if step.kind.name == "compare" and outcome.status in DONE else ""
    after = f", after {', '.join(step.upstream)}" if step.upstream else ""
    return (f'<h2 id="{escape(step.name)}">{escape(step.name)}: {escape(step.kind.name)}, {escape(outcome.status)}'
            f"{escape(after)}</h2><p>{links}</p>{curves}{answers}")


def _files(folder: Path) -> list[Path]:
    named = [folder / name for name in (
        ROLLOUT_PAGE, "running_log.txt", LOG_FILE, "all_results.json", "eval_results.json", "README.md")]
    return [*named, *sorted(folder.glob("training_*.png"))]


def _link(base: Path, path: Path) -> str:
    target = Path(os.path.relpath(path, base)).as_posix()
    return f'<a href="{escape(_as_url(target))}">{escape(path.name)}</a>'


def _as_url(path: str) -> str:
    return path.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def _curves(folder: Path) -> list[str]:
    """Return a picture of every measure of the run's log."""
    rows = _log(folder / LOG_FILE)
    return [curve(points_of(rows, name), name) for name in [*drawn(rows), "lr"]]


def _log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of trainer_log.jsonl with their step; a line that a stopped run left half is no row."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["current_steps"])})
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _answers(step: Planned) -> str:
    try:
        found = side_by_side(step.values["evaluations"], int(step.values.get("show", 8)))
    except DataError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    return _numbers(found) + _questions(found)


def _numbers(found: Comparison) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *found.models))
    rows = "".join(
        f"<tr><td>{escape(measure.replace('_', ' '))}</td>" + "".join(
            f'<td class="number">{_value(measure, numbers)}</td>' for numbers in found.numbers.values()) + "</tr>"
        for measure in found.measures)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _value(measure: str, numbers: dict[str, float]) -> str:
    if measure not in numbers:
        return ""
    return escape(told(measure, numbers[measure]).removeprefix(measure.replace("_", " ")).strip())


def _questions(found: Comparison) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("question", *found.models))
    rows = "".join(
        f"<tr><td>{escape(question)}</td>" + "".join(
            f'<td class="{"wrong" if "wrong" in said.verdict else ""}">{escape(said.text)}'
            f"<br><small>{escape(said.verdict)}</small></td>" for said in answers) + "</tr>"
        for question, answers in found.questions)
    return f'<div class="wide"><table class="answers"><tr>{head}</tr>{rows}</table></div>'
