"""The loss curve as a picture: raw values and an exponential moving average."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_losses(history: Sequence[dict[str, Any]], folder: Path, keys: Sequence[str] = ("loss", "eval_loss")) -> None:
    """Draw training_{key}.png for every key that the log history holds."""
    for key in keys:
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            _plot([p[0] for p in points], [p[1] for p in points], key, folder / f"training_{key}.png")


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
