"""Lay the answers of several evaluations side by side: the same questions, one line for each model."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError

PREDICTIONS, RESULTS = "generated_predictions.jsonl", "eval_results.json"
_CONTROL = re.compile(r"<\|[^|<>]*\|>|</?s>")


def compare(evaluations: Mapping[str, str], show: int = 8) -> str:
    """Return `show` questions spread over the set with each model's answer, then every accuracy.

    `evaluations` maps a name to the folder that `danlu eval task=exact` wrote. Raises DataError when the folders do
    not hold answers to the same questions.
    """
    answers = {name: _predictions(Path(folder)) for name, folder in evaluations.items()}
    first, *others = answers
    for other in others:
        if [row["label"] for row in answers[other]] != [row["label"] for row in answers[first]]:
            raise DataError(f"{first} and {other} answered different questions", where=str(evaluations[other]),
                            fix="evaluate both on the same data set")
    width = max(map(len, answers))
    lines: list[str] = []
    for row in _spread(len(answers[first]), show):
        lines += ["", _CONTROL.sub("", answers[first][row]["prompt"]).strip()]
        lines += [f"  {name.ljust(width)}  {_verdict(rows[row])} {_one_line(rows[row]['predict'])}"
                  for name, rows in answers.items()]
    return "\n".join([*lines, "", *_accuracies(evaluations, width)])


def _predictions(folder: Path) -> list[dict[str, Any]]:
    path = folder / PREDICTIONS
    if not path.is_file():
        raise DataError("no answers here", where=str(path), fix="run `danlu eval task=exact` with this save_dir")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _spread(rows: int, show: int) -> list[int]:
    """Return `show` row numbers at equal distances, half a distance from either end."""
    show = min(rows, show)
    return [(2 * number + 1) * rows // (2 * show) for number in range(show)]


def _verdict(row: Mapping[str, str]) -> str:
    return "right" if row["predict"].strip() == row["label"].strip() else "wrong"


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"


def _accuracies(evaluations: Mapping[str, str], width: int) -> Iterator[str]:
    for name, folder in evaluations.items():
        path = Path(folder) / RESULTS
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        parts = [f"{key.replace('_', ' ')} {100 * value:.1f} %" for key, value in results.items()
                 if key.startswith("accuracy")]
        yield f"  {name.ljust(width)}  {', '.join(parts)}"
