"""Evaluation: the loss over a whole data set as one global mean, no gradient, nothing kept but sums."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from danlu.core.errors import ConfigError, DataError, did_you_mean
from danlu.core.stream import Example
from danlu.engine.distributed import sum_over_ranks
from danlu.stages.base import Stage


class Examples(Sized, Protocol):
    """A data set as the engine sees it."""

    @property
    def fingerprint(self) -> str:
        """Identify content, order and encoding."""

    @property
    def lengths(self) -> Sequence[int] | NDArray[np.int64]:
        """Tokens in each example."""

    def __getitem__(self, index: int) -> Example: ...

    def origin(self, index: int) -> str:
        """Return file and row behind a position."""


EvalSets = Examples | Mapping[str, Examples] | None


@dataclass(frozen=True, slots=True)
class Sums:
    """What an evaluation adds up: losses, what they are divided by, metrics; and what the stage tells of whole sets."""

    total: float = 0.0
    count: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    examples: int = 0


def named_sets(sets: EvalSets) -> dict[str, Examples]:
    """Return evaluation sets by name; a single one has the empty name."""
    if sets is None:
        return {}
    return dict(sets) if isinstance(sets, Mapping) else {"": sets}


def evaluate(stage: Stage, sets: dict[str, Examples], accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """Return eval_loss (mean over all terms of all sets), perplexity, metrics and speed; per set as eval_{name}_*."""
    began = time.monotonic()
    report: dict[str, float] = {}
    total = Sums()
    for name, dataset in sets.items():
        if len(dataset) == 0:
            raise DataError("the evaluation set is empty", where=name or "eval_dataset", fix="check val_size")
        with torch.no_grad():
            sums = _sums(stage, dataset, accelerator, batch_size)
        total = _add(total, sums)
        if len(sets) > 1 or name:
            report |= _metrics(sums, f"eval_{name}_", stage)
    report |= _metrics(total, "eval_", stage)
    seconds = time.monotonic() - began
    report["eval_runtime"] = round(seconds, 4)
    report["eval_samples_per_second"] = round(sum(len(one) for one in sets.values()) / seconds, 3)
    return report


def check_metric(wanted: str | None, stage: type[Stage], sets: Sequence[str]) -> None:
    """Refuse a metric_for_best_model that no evaluation of this stage, over sets of these names, can produce."""
    own = ("loss", *(("perplexity",) if stage.loss_is_nll else ()), *stage.metrics)
    known = [*own, *(f"{name}_{one}" for name in sets for one in own if name), "runtime", "samples_per_second"]
    if wanted is not None and wanted.removeprefix("eval_") not in known:
        raise ConfigError(f'metric_for_best_model "{wanted}" is no result of the evaluation',
                          fix=did_you_mean(wanted.removeprefix("eval_"), known))


def _sums(stage: Stage, dataset: Examples, accelerator: Accelerator, batch_size: int) -> Sums:
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    weight = float(len(own) > 0)
    total, count = 0.0, 0.0
    metrics: dict[str, float] = {}
    stage.surroundings.counts, stage.surroundings.step = bool(own), 0
    # A process without a share takes another's example with weight 0: it joins every sum, under the same names.
    for part in _parts(stage.prepare(Share(dataset, own or range(1))), batch_size):
        micro = stage.collate(part)
        count += float(stage.count(micro))
        output = stage.loss(micro.to(accelerator.device))
        total += float(output.total)
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    names = sorted(metrics)
    sums = [weight * one for one in (total, count, *(metrics[name] for name in names))]
    total, count, *values = sum_over_ranks(accelerator, sums)
    return Sums(total, count, dict(zip(names, values, strict=True)), stage.told(), len(dataset))


class Share(Sequence[Example]):
    """One process's examples of a data set, read when asked for."""

    def __init__(self, dataset: Examples, positions: range) -> None:
        self._dataset, self._positions = dataset, positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self._dataset[one] for one in self._positions[index]]
        return self._dataset[self._positions[index]]


def _parts(minibatches: Iterable[Sequence[Example]], size: int) -> Iterator[Sequence[Example]]:
    for minibatch in minibatches:
        for start in range(0, len(minibatch), size):
            yield minibatch[start:start + size]


def _add(left: Sums, right: Sums) -> Sums:
    metrics = {name: left.metrics.get(name, 0.0) + value for name, value in right.metrics.items()}
    examples = left.examples + right.examples
    told = {name: (left.told.get(name, 0.0) * left.examples + value * right.examples) / examples
            for name, value in right.told.items()}
    return Sums(left.total + right.total, left.count + right.count, metrics, told, examples)


def _metrics(sums: Sums, prefix: str, stage: Stage) -> dict[str, float]:
    loss = sums.total / sums.count if sums.count else math.nan
    report: dict[str, Any] = {f"{prefix}loss": loss}
    if stage.loss_is_nll:
        report[f"{prefix}perplexity"] = math.exp(loss) if loss < 700 else math.inf
    means = stage.report({name: value / (sums.count or 1.0) for name, value in sums.metrics.items()}) | sums.told
    return report | {f"{prefix}{name}": value for name, value in means.items()}
