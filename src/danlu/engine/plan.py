"""How many steps a run takes and at which of them it logs, evaluates and saves. Knows no torch."""

import math
from dataclasses import dataclass
from typing import Self

from danlu.core.errors import ConfigError
from danlu.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """The length of a run, in optimiser steps.

    global_batch     examples of one step over all processes
    steps_per_epoch  the last, incomplete batch of an epoch counts unless dataloader_drop_last
    *_every          steps between two events; 0 means never
    """

    num_examples: int
    global_batch: int
    steps_per_epoch: int
    total_steps: int
    log_every: int
    eval_every: int
    save_every: int
    eval_from: int

    @classmethod
    def of(cls, config: EngineConfig, num_examples: int, world_size: int = 1, *, batches: int = 1) -> Self:
        """Work out the plan; refuse an empty data set and a schedule that never steps.

        batches  how many batches a step takes at once, for stages that update several times on one collection
        """
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size
        global_batch = batch * batches
        if num_examples == 0:
            raise ConfigError("the training set is empty", fix="check dataset, max_samples and val_size")
        if config.dataloader_drop_last and num_examples < global_batch:
            raise ConfigError(
                f"dataloader_drop_last leaves nothing: {num_examples} examples, {global_batch} in one step",
                fix="lower per_device_train_batch_size or gradient_accumulation_steps")
        whole = num_examples // global_batch if config.dataloader_drop_last else math.ceil(num_examples / global_batch)
        total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * whole)
        eval_steps = config.eval_steps if config.eval_steps is not None else config.logging_steps
        plan = cls(
            num_examples=num_examples, global_batch=global_batch, steps_per_epoch=whole, total_steps=total,
            log_every=_every(config.logging_strategy, config.logging_steps, whole, total),
            eval_every=_every(config.eval_strategy, eval_steps, whole, total),
            save_every=_every(config.save_strategy, config.save_steps, whole, total),
            eval_from=math.ceil(config.eval_delay * (whole if config.eval_strategy == "epoch" else 1)))
        plan._check_best(config)
        return plan

    def epoch(self, step: int) -> float:
        """Return how often the data set has been seen after `step` steps."""
        return step / self.steps_per_epoch

    def is_log(self, step: int) -> bool:
        """Return True when the loss of the steps so far is due in the log; the last step counts."""
        return self.log_every > 0 and (step % self.log_every == 0 or step == self.total_steps)

    def is_eval(self, step: int) -> bool:
        """Return True when an evaluation is due after `step`."""
        return self.eval_every > 0 and step % self.eval_every == 0 and step >= self.eval_from

    def is_save(self, step: int) -> bool:
        """Return True when a checkpoint is due after `step`; the last step counts."""
        return self.save_every > 0 and (step % self.save_every == 0 or step == self.total_steps)

    def _check_best(self, config: EngineConfig) -> None:
        if config.load_best_model_at_end and self.save_every and self.save_every % self.eval_every:
            raise ConfigError(
                f"load_best_model_at_end needs an evaluation at every checkpoint: save_steps {self.save_every} is no "
                f"multiple of eval_steps {self.eval_every}", fix="make save_steps a multiple of eval_steps")


def _every(strategy: str, steps: float, steps_per_epoch: int, total: int) -> int:
    if strategy in ("no", "best"):
        return 0
    if strategy == "epoch":
        return steps_per_epoch
    return max(1, math.ceil(total * steps)) if steps < 1 else int(steps)
