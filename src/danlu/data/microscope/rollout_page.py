"""The rollout browser: the answers of rollouts.jsonl as one HTML page that loads nothing from elsewhere."""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from danlu.core.errors import DataError
from danlu.core.run_dir import ROLLOUT_FILE, ROLLOUT_PAGE, write_whole
from danlu.data.microscope.frame import STYLE, curve, document

MOST_ROWS = 20_000  # a page of more answers is slow to open
ROLLOUT_STYLE = STYLE + """
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; position: sticky; top: 0;
  background: var(--paper); border-bottom: 1px solid var(--line); padding: .5rem 0; }
.card { border: 1px solid var(--line); border-radius: 4px; padding: .5rem .8rem; margin: .5rem 0; }
.side { display: flex; gap: .6rem; overflow-x: auto; } .side .card { flex: 0 0 20rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font: 14px/1.6 ui-monospace, monospace; }
.prompt { color: var(--special); } .numbers { margin: 0; font-size: .8rem; opacity: .8; }
section { border-top: 1px solid var(--line); padding-top: .5rem; }
"""
SORTS = {"step-up": "step", "reward-down": "reward, highest first", "reward-up": "reward, lowest first",
         "length-down": "length, longest first", "length-up": "length, shortest first", "kl-down": "KL, highest first",
         "kl-up": "KL, lowest first"}
Row = dict[str, Any]


def write_rollout_page(folder: Path) -> Path | None:
    """Write rollouts.html beside rollouts.jsonl and return its path; None where the run has logged no answers.

    Raises DataError for a line that is no answer. A half line at the end, of a run that goes on, is left out.
    """
    rows = read_rollouts(folder / ROLLOUT_FILE)
    if not rows:
        return None
    path = folder / ROLLOUT_PAGE
    write_whole(path, rollout_page(f"{folder.resolve().name}: sampled answers", rows))
    return path


def read_rollouts(path: Path) -> list[Row]:
    """Return the answers of a rollouts.jsonl, numbers that are not finite as None; none when it is absent."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            assert isinstance(row["step"], int)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError("this line is no sampled answer: expected a JSON object with a step",
                            where=f"{path}:{number}", fix="remove the line") from error
        rows.append(_finite(row))
    return rows


def rollout_page(title: str, rows: Sequence[Row]) -> str:
    """Return the page: curves over the steps, controls, and the answers as data for the script that lays them out."""
    steps = sorted({row["step"] for row in rows})
    shown, note = _thinned(rows, steps)
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    script = files("danlu.data.microscope").joinpath("rollouts.js").read_text(encoding="utf-8")
    return document(title, [
        f'<p>{len(rows):,} answers of {len(steps):,} steps. Colour: red is the lowest reward of the run, green the '
        f"highest.</p>{note}", "".join(curve(_means(rows, steps, key), f"mean {name} of the answers here")
                                      for key, name in (("reward", "reward"), ("kl", "KL"), ("length", "length"))),
        _controls(steps[0], steps[-1]), '<main id="list"></main><button id="more" hidden>more</button>',
        "<noscript>The answers are laid out by a script in this page.</noscript>",
        f'<script type="application/json" id="rows">{_inside_script(data)}</script>',
        f"<script>{script}</script>"], ROLLOUT_STYLE)


def _controls(first: int, last: int) -> str:
    sorts = "".join(f'<option value="{key}">{escape(name)}</option>' for key, name in SORTS.items())
    slider = '<input type="range" id="{0}" min="{1}" max="{2}" value="{3}" aria-label="{0} step">'
    return ('<div class="controls"><label>steps <output id="steps"></output></label>'
            f'{slider.format("first", first, last, first)}{slider.format("last", first, last, last)}'
            f'<label>sort <select id="sort">{sorts}</select></label>'
            '<input type="search" id="search" placeholder="search prompt and answer" aria-label="search">'
            '<label><input type="checkbox" id="prompts"> side by side per prompt</label>'
            '<label><input type="checkbox" id="cut"> only cut answers</label><span id="count"></span></div>')


def _thinned(rows: Sequence[Row], steps: Sequence[int]) -> tuple[Sequence[Row], str]:
    """Return the rows of evenly spaced steps, few enough for a page, and the sentence that says so."""
    if len(rows) <= MOST_ROWS:
        return rows, ""
    kept = set(steps[::math.ceil(len(rows) / MOST_ROWS)])
    shown = [row for row in rows if row["step"] in kept]
    return shown, (f'<p class="note">{len(shown):,} of them, of every {math.ceil(len(rows) / MOST_ROWS)}th step, are '
                   f"in this page; {ROLLOUT_FILE} has all.</p>")


def _means(rows: Sequence[Row], steps: Sequence[int], key: str) -> list[tuple[float, float]]:
    values: dict[int, list[float]] = {step: [] for step in steps}
    for row in rows:
        if isinstance(row.get(key), int | float):
            values[row["step"]].append(row[key])
    return [(step, fmean(found)) for step, found in values.items() if found]


def _inside_script(data: str) -> str:
    """Return JSON that neither ends a script element nor opens a comment in it."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
