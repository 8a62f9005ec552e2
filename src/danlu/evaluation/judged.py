"""What a reward model says of answers whose order is known: rewards, how often it is right, how well it knows that.

A prompt with K answers gives C(K, 2) decisions that weigh 1 together, as in training; a single answer with a verdict
gives one: is its reward on the right side of zero?
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.core.run_dir import write_json
from danlu.data.dataset import TokenDataset
from danlu.losses.calibration import BINS, bins_of, confidence, gaps
from danlu.models.stream_tensors import StreamTensors

CALIBRATION = "calibration.json"
PICTURE = "calibration.png"
NUM_GOOD = 1  # place of the number of good answers among the facts of stage rm


@dataclass(frozen=True, slots=True)
class Judged:
    """The rewards of one prompt's answers, the best first, of which `num_good` are good; and where the row stands."""

    rewards: tuple[float, ...]
    num_good: int
    origin: str

    def leads(self) -> list[float]:
        """Return by how much each decision is right; negative where it is wrong."""
        if len(self.rewards) > 1:
            return [better - worse for better, worse in combinations(self.rewards, 2)]
        return [reward if self.num_good else -reward for reward in self.rewards]

    def line(self) -> str:
        """Return the JSON line of the predictions file."""
        parts = {"chosen": self.rewards[:self.num_good], "rejected": self.rewards[self.num_good:]}
        row: dict[str, Any] = {name: part[0] if len(part) == 1 else list(part) for name, part in parts.items() if part}
        return json.dumps(row | {"origin": self.origin}, ensure_ascii=False) + "\n"


def judge(
    scorer: Callable[[StreamTensors], Tensor], dataset: TokenDataset, *, size: int, device: torch.device,
) -> Iterator[Judged]:
    """Yield the rewards of every row, `size` rows in one forward pass."""
    for start in range(0, len(dataset), size):
        part = dataset[start:start + size]
        with torch.no_grad():
            rewards = iter(scorer(StreamTensors.of(part).to(device)).tolist())
        for one in part:
            yield Judged(tuple(next(rewards) for _ in one.lengths), int(one.facts[NUM_GOOD]), dataset.origin(one.index))


def measure(judged: Sequence[Judged]) -> dict[str, float]:
    """Return accuracy, mean margin, expected calibration error, and mean rewards of good and bad answers."""
    lead_N, weight_N = _decisions(judged)
    count = max(len(judged), 1)
    numbers = {"accuracy": float((weight_N * (lead_N > 0)).sum()) / count,
               "ece": float(gaps(lead_N, weight_N).abs().sum()) / count}
    sides = ([sum(one.rewards[:one.num_good]) / one.num_good for one in judged if one.num_good],
             [sum(bad) / len(bad) for one in judged if (bad := one.rewards[one.num_good:])])
    means = {f"rewards/{name}": sum(side) / len(side)
             for name, side in zip(("chosen", "rejected"), sides, strict=True) if side}
    if all(len(one.rewards) > 1 for one in judged):
        numbers["margin"] = float((weight_N * lead_N).sum()) / count
    elif len(means) == len(sides):
        numbers["margin"] = means["rewards/chosen"] - means["rewards/rejected"]
    return numbers | means


def reliability(judged: Sequence[Judged]) -> list[dict[str, float]]:
    """Return the bins that hold decisions: bounds, weight, mean confidence and share of right ones."""
    lead_N, weight_N = _decisions(judged)
    sure_N = confidence(lead_N)
    which_N, table = bins_of(sure_N), []
    for index in range(BINS):
        mine_N = weight_N * (which_N == index)
        total = float(mine_N.sum())
        if total:
            bounds = {"from": 0.5 + index / (2 * BINS), "to": 0.5 + (index + 1) / (2 * BINS), "weight": total}
            table.append(bounds | {"confidence": float((mine_N * sure_N).sum()) / total,
                                   "accuracy": float(mine_N[lead_N > 0].sum()) / total})
    return table


def write_judged(folder: Path, name: str, judged: Sequence[Judged]) -> None:
    """Write the rewards of every row as `name`, and calibration.json with its picture."""
    with (folder / name).open("w", encoding="utf-8") as file:
        file.writelines(one.line() for one in judged)
    bins = reliability(judged)
    write_json(folder / CALIBRATION, {"ece": measure(judged)["ece"], "bins": bins})
    _draw(bins, folder / PICTURE)


def _decisions(judged: Sequence[Judged]) -> tuple[Tensor, Tensor]:
    """Return all leads and their weights, (N,) float64 each; those of one row weigh 1 together."""
    leads = [one.leads() for one in judged]
    weights = [1 / len(part) for part in leads for _ in part]
    return (torch.tensor([lead for part in leads for lead in part], dtype=torch.float64),
            torch.tensor(weights, dtype=torch.float64))


def _draw(bins: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw how often decisions are right over how sure they are; on the diagonal, claims hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="claims hold")
    axes.plot([one["confidence"] for one in bins], [one["accuracy"] for one in bins], marker="o", color="#1f77b4",
              label="this model")
    axes.set_xlabel("confidence")
    axes.set_ylabel("share of right decisions")
    axes.legend()
    figure.savefig(path, dpi=100)
