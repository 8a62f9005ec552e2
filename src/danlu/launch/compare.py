"""Lay the answers of several evaluations side by side: the same questions, one line for each model, and its numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError

PREDICTIONS, RESULTS = "generated_predictions.jsonl", "eval_results.json"
MEASURES = ("accuracy", "reward", "score", "kl", "perplexity", "win")
"""A number of eval_results.json is compared when one of these is a word of its name: `golden_reward`, `accuracy_zh`."""
Folders = str | Sequence[str]
_CONTROL = re.compile(r"<\|[^|<>]*\|>|</?s>")


@dataclass(frozen=True, slots=True)
class Said:
    """One model's answer. `verdict` is its reward where one is told, else right or wrong where there is a reference."""

    text: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models by name with their numbers; questions, each with every model's answer in the order of the models."""

    numbers: dict[str, dict[str, float]]
    questions: list[tuple[str, list[Said]]]

    @property
    def models(self) -> list[str]:
        """The names of the models."""
        return list(self.numbers)

    @property
    def measures(self) -> list[str]:
        """The names of all numbers, in the order they first appear."""
        return list(dict.fromkeys(name for numbers in self.numbers.values() for name in numbers))


def compare(evaluations: Mapping[str, Folders], show: int = 8) -> str:
    """Return `show` questions spread over the set with each model's answer, then each model's numbers, as text."""
    return as_text(side_by_side(evaluations, show))


def side_by_side(evaluations: Mapping[str, Folders], show: int = 8) -> Comparison:
    """Return `show` questions spread over the set with each model's answer, and each model's numbers.

    evaluations  name -> the folder that `danlu eval task=exact` wrote, or several folders: answers are those of the
                 first that has some, numbers those of every eval_results.json
    Raises DataError when the folders do not hold answers to the same questions.
    """
    folders = {name: [Path(one) for one in ([given] if isinstance(given, str) else given)]
               for name, given in evaluations.items()}
    answers = {name: _predictions(given) for name, given in folders.items()}
    first, *others = answers
    for other in others:
        if [row["label"] for row in answers[other]] != [row["label"] for row in answers[first]]:
            raise DataError(f"{first} and {other} answered different questions", where=str(evaluations[other]),
                            fix="evaluate both on the same data set")
    questions = [(_CONTROL.sub("", answers[first][row]["prompt"]).strip(),
                  [Said(rows[row]["predict"], _verdict(rows[row])) for rows in answers.values()])
                 for row in _spread(len(answers[first]), show)]
    return Comparison({name: _numbers(given) for name, given in folders.items()}, questions)


def as_text(found: Comparison) -> str:
    """Return a comparison for the terminal."""
    width = max(map(len, found.models))
    lines: list[str] = []
    for question, answers in found.questions:
        lines += ["", question]
        lines += [f"  {name.ljust(width)}  {said.verdict + ' ' if said.verdict else ''}{_one_line(said.text)}"
                  for name, said in zip(found.models, answers, strict=True)]
    numbers = [f"  {name.ljust(width)}  " + ", ".join(told(key, value) for key, value in values.items())
               for name, values in found.numbers.items()]
    return "\n".join([*lines, "", *numbers])


def told(name: str, value: float) -> str:
    """Return a number with its name: shares of right answers in per cent, all else as it is."""
    label = name.replace("_", " ")
    return f"{label} {100 * value:.1f} %" if name.startswith("accuracy") else f"{label} {value:.4g}"


def _predictions(folders: Sequence[Path]) -> list[dict[str, Any]]:
    path = next((one / PREDICTIONS for one in folders if (one / PREDICTIONS).is_file()), None)
    if path is None:
        raise DataError("no answers here", where=", ".join(str(one / PREDICTIONS) for one in folders),
                        fix="run `danlu eval task=exact` with this save_dir")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _spread(rows: int, show: int) -> list[int]:
    """Return `show` row numbers at equal distances, half a distance from either end."""
    show = min(rows, show)
    return [(2 * number + 1) * rows // (2 * show) for number in range(show)]


def _verdict(row: Mapping[str, Any]) -> str:
    """Return the reward of an answer where one is told, else whether it is the reference word for word."""
    if isinstance(row.get("reward"), int | float):
        return f"[{row['reward']:.3g}]"
    label = row["label"].strip()
    return "" if not label else "right" if row["predict"].strip() == label else "wrong"


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"


def _numbers(folders: Sequence[Path]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in (one / RESULTS for one in folders):
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found |= {key: float(value) for key, value in results.items()
                  if isinstance(value, int | float) and set(re.split(r"[_/]", key)) & set(MEASURES)}
    return found
