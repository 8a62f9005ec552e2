"""The curves of a run as pictures: raw values and an exponential moving average."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CURVES = ("loss", "reward", "kl", "length", "entropy", "accuracy", "accuracies", "margin", "margins")
"""Last words of the names that are drawn: `loss`, `eval_loss`, `rewards/accuracies`, `policy_loss`, ..."""


def plot_losses(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw training_{name}.png for the losses and the stage's own measures that the log history holds."""
    for key in drawn(history):
        points = points_of(history, key)
        _plot([p[0] for p in points], [p[1] for p in points], key, folder / f"training_{file_name(key)}.png")


def drawn(history: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names that have a picture, in the order they first appear."""
    names = dict.fromkeys(key for row in history for key in row)
    return [name for name in names if name.replace("/", "_").split("_")[-1] in CURVES and points_of(history, name)]


def points_of(history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of every row that has a finite number under `key`."""
    return [(row["step"], row[key]) for row in history
            if isinstance(row.get(key), int | float) and math.isfinite(row[key])]


def file_name(key: str) -> str:
    """Return the name of a measure as part of a file name: `rewards/accuracies` gives `rewards_accuracies`."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in key)


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the bias-corrected moving average s_t = w s_{t-1} + (1 - w) x_t, divided by 1 - w^t."""
    average, out = 0.0, []
    for t, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**t))
    return out


def _plot(steps: Sequence[int], values: Sequence[float], key: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, values, color="#1f77b4", alpha=0.4, label="original")
    axes.plot(steps, smoothed(values), color="#1f77b4", label="smoothed")
    axes.set_xlabel("step")
    axes.set_ylabel(key)
    axes.set_title(f"{key}, {path.parent.name}")
    axes.legend()
    figure.savefig(path, dpi=100)
