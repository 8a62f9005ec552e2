"""One optimiser step: sums over micro-batches and processes, divided once by the step's global count.

    gradient = d/dtheta  sum_i total_i / sum_i count_i        i over every micro-batch of every process

Both sums run over the whole step, so the result depends neither on how examples are cut into micro-batches nor on how
they are dealt to processes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from danlu.core.console import notice
from danlu.core.stream import Example
from danlu.engine.distributed import gather_lists, sum_over_ranks
from danlu.engine.faults import NonFiniteError
from danlu.engine.micro_batches import MicroBatches
from danlu.stages.base import Stage


@dataclass(slots=True)
class StepResult:
    """What one step leaves for the log; sums over all processes, losses already divided."""

    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    tokens: int = 0
    updates: int = 0


def nothing() -> None:
    """Wait for nobody."""


@dataclass(slots=True)
class Stepper:
    """The parts that every step uses.

    origins        names the row behind a data-set position
    before_change  waits for whoever still reads the weights and the optimiser's state
    """

    accelerator: Accelerator
    stage: Stage
    policy: nn.Module
    optimizer: Any
    trained: list[nn.Parameter]
    micro_batches: MicroBatches
    max_grad_norm: float
    origins: Any
    before_change: Callable[[], None] = nothing

    def run(self, examples: Sequence[Example], *, counts: bool, step: int) -> StepResult:
        """Train on this process's examples of one global batch.

        counts  False when the process has no share of an incomplete batch: it takes part with weight 0, because
                every process must join every reduction
        """
        result = StepResult()
        self.stage.surroundings.counts, self.stage.surroundings.step = counts, step
        for minibatch in without_gradients(self.stage.prepare(examples)):
            result.updates += self._minibatch(minibatch, 1.0 if counts else 0.0, step, result)
        scale = 1 / max(result.updates, 1)
        result.loss *= scale
        result.metrics = {name: value * scale for name, value in result.metrics.items()} | self.stage.told()
        return result

    def _minibatch(self, minibatch: Sequence[Example], weight: float, step: int, result: StepResult) -> bool:
        """Take one optimiser step; return False, and change nothing, when no process has anything to learn from."""
        parts = self.micro_batches.cut(minibatch)
        micros = [self.stage.collate(part) for part in parts]
        tokens = sum(int(micro.input_ids.numel()) for micro in micros)
        own_count = sum(float(self.stage.count(micro)) for micro in micros)
        count, tokens_seen = sum_over_ranks(self.accelerator, [weight * own_count, weight * tokens])
        if count == 0:
            notice("a step in which nothing carries loss leaves the weights as they are")
            return False
        totals, metrics = self._backward(micros, weight, count)
        self._reduce(totals, metrics, self._clip(), weight, count, result)
        if not math.isfinite(result.loss) or not (math.isfinite(result.grad_norm) or self._scales()):
            self._stop(parts, totals, weight, step, result)
        self.before_change()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        result.tokens += int(tokens_seen)
        return True

    def _backward(self, micros: Sequence[Any], weight: float, count: float) -> tuple[list[Tensor], dict[str, Tensor]]:
        # DDP averages gradients over processes; the factor turns its mean back into a sum.
        factor = weight * self.accelerator.num_processes / count
        totals: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for index, micro in enumerate(micros):
            with self._sync_at_last(index == len(micros) - 1):
                output = self.stage.loss(micro.to(self.accelerator.device))
                self.accelerator.backward(output.total * factor)
            totals.append(output.total.detach())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach()
        return totals, metrics

    def _sync_at_last(self, last: bool) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.policy)
        return context

    def _clip(self) -> Tensor:
        """Return the norm of the whole gradient; scale it down to max_grad_norm when that is set."""
        limit = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
        norm: Tensor = self.accelerator.clip_grad_norm_(self.trained, limit)
        return norm

    def _scales(self) -> bool:
        """Return True with float16 loss scaling, where an overflow skips the step and lowers the scale."""
        return self.accelerator.scaler is not None

    def _reduce(self, totals: Sequence[Tensor], metrics: dict[str, Tensor], norm: Tensor, weight: float, count: float,
                result: StepResult) -> None:
        names = sorted(metrics)
        loss = torch.stack(list(totals)).double().sum()
        numbers = [norm, loss, *(metrics[name] for name in names)]
        # All numbers come in one transfer. Its wait for the device remains: a NaN must be known before weights change.
        grad_norm, *own = torch.stack([one.to(loss).reshape(()) for one in numbers]).tolist()
        total, *values = sum_over_ranks(self.accelerator, [weight * value for value in own])
        result.loss += total / count
        for name, value in zip(names, values, strict=True):
            result.metrics[name] = result.metrics.get(name, 0.0) + value / count
        result.grad_norm = grad_norm

    def _stop(self, parts: Sequence[Sequence[Example]], totals: Sequence[Tensor], weight: float, step: int,
              result: StepResult) -> None:
        bad = [part for part, total in zip(parts, totals, strict=True) if not torch.isfinite(total)]
        loss_is_bad = not math.isfinite(result.loss)
        suspects = [example for part in (bad if loss_is_bad else parts) for example in part]
        if loss_is_bad:
            suspects = [one for one in suspects if not self._is_finite_alone(one)] or suspects
        rows = [self.origins(example.index) for example in suspects] if weight else []
        detail = "" if loss_is_bad else self._first_bad_gradient()
        what = f"the loss is {result.loss}" if loss_is_bad else f"the gradient norm is {result.grad_norm}"
        raise NonFiniteError(what, step, gather_lists(self.accelerator, rows), detail)

    def _is_finite_alone(self, example: Example) -> bool:
        with torch.no_grad():
            total = self.stage.loss(self.stage.collate([example]).to(self.accelerator.device)).total
        return bool(torch.isfinite(total))

    def _first_bad_gradient(self) -> str:
        for name, parameter in self.policy.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"; first such gradient: {name}"
        return ""


def without_gradients(minibatches: Iterator[Sequence[Example]]) -> Iterator[Sequence[Example]]:
    """Advance a generator under no_grad and hand out its items with gradients enabled again."""
    while True:
        with torch.no_grad():
            item = next(minibatches, None)
        if item is None:
            return
        yield item
