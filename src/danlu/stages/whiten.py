"""Numbers brought to mean 0 and spread 1: over one step, or with running moments over all steps so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

Total = Callable[[list[float]], list[float]]
EPS = 1e-8


def whiten(values: Tensor, mask: Tensor, total: Total, *, keep_mean: bool = False) -> Tensor:
    """Return (x - mean) / std over the entries where `mask` counts, elsewhere 0; `keep_mean` gives x / std.

    total  sums numbers over all processes, so that every answer of the step is measured by the same mean
    """
    kept = values[mask].double()
    count, first, second = total([float(len(kept)), float(kept.sum()), float((kept * kept).sum())])
    mean = first / max(count, 1.0)
    std = max(second / max(count, 1.0) - mean * mean, 0.0) ** 0.5
    shifted = values if keep_mean else values - mean
    return torch.where(mask, shifted / (std + EPS), torch.zeros_like(values))


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of all numbers seen (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Tensor, total: Total) -> Self:
        """Return the moments with one step's numbers of all processes added."""
        seen = values.double()
        count, first, second = total([float(len(seen)), float(seen.sum()), float((seen * seen).sum())])
        if not count:
            return self
        mean, all_seen = first / count, self.count + count
        delta = mean - self.mean
        squares = self.squares + (second - count * mean * mean) + delta * delta * self.count * count / all_seen
        return type(self)(all_seen, self.mean + delta * count / all_seen, max(squares, 0.0))

    @property
    def std(self) -> float:
        """Standard deviation, with n - 1; 1 while it is unknown."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0
