"""The learning rate over the run: every `lr_scheduler_type` of transformers, with warm-up."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers.optimization import GreedyLR, get_scheduler

from danlu.core.errors import ConfigError
from danlu.engine.config import EngineConfig


class Schedule:
    """One learning rate for the steps to come; told of every step and of every evaluation."""

    def __init__(self, optimizer: Optimizer, config: EngineConfig, total_steps: int) -> None:
        self._optimizer = optimizer
        self._inner = _make(optimizer, config, total_steps)
        self._by_metric = isinstance(self._inner, (ReduceLROnPlateau, GreedyLR))

    @property
    def learning_rate(self) -> float:
        """The rate of the first parameter group for the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Move on by one optimiser step."""
        if not self._by_metric:
            self._inner.step()

    def after_evaluation(self, metric: float) -> None:
        """Tell a schedule that watches the evaluation what came out."""
        if self._by_metric:
            self._inner.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return dict(self._inner.state_dict())

    def load_state_dict(self, state: dict[str, Any], *, keep_base: bool) -> None:
        """Go on at the saved step; `keep_base` puts the configured rates in place of the saved ones."""
        bases = list(self._inner.base_lrs) if keep_base and isinstance(self._inner, LambdaLR) else None
        self._inner.load_state_dict(state)
        if bases is None or not isinstance(self._inner, LambdaLR):
            return
        self._inner.base_lrs = bases
        for group, base, shape in zip(self._optimizer.param_groups, bases, self._inner.lr_lambdas, strict=True):
            group["lr"] = base * shape(self._inner.last_epoch)


def warmup_steps(config: EngineConfig, total_steps: int) -> int:
    """Return the steps of rising rate: warmup_steps (below 1 a share of the run), else warmup_ratio."""
    if config.warmup_steps >= 1:
        return int(config.warmup_steps)
    return math.ceil(total_steps * (config.warmup_steps or config.warmup_ratio))


def _make(optimizer: Optimizer, config: EngineConfig, total_steps: int) -> Any:
    extra = dict(config.lr_scheduler_kwargs or {})
    if config.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in extra:
        extra["num_decay_steps"] = max(1, total_steps // 10)
    if config.lr_scheduler_type == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & set(extra):
        extra["min_lr_rate"] = 0.1
    if config.lr_scheduler_type == "cosine_warmup_with_min_lr" and not {"min_lr", "min_lr_rate"} & set(extra):
        extra["min_lr_rate"] = 0.1
    try:
        return get_scheduler(config.lr_scheduler_type, optimizer, warmup_steps(config, total_steps), total_steps, extra)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler_type {config.lr_scheduler_type} does not take lr_scheduler_kwargs {extra}: {error}",
            fix="see transformers' get_scheduler for the settings of each schedule") from error
