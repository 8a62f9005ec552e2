"""What a run tells while it goes: progress bar or lines, trainer_log.jsonl, trackers."""

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from danlu.core.console import is_main_process, say
from danlu.core.run_dir import RunDir
from danlu.engine.config import EngineConfig
from danlu.engine.hooks import Hook
from danlu.engine.plan import Plan
from danlu.engine.state import LogRow, TrainerState


class Reporter:
    """Takes the numbers of a run to every place where someone looks at them."""

    def __init__(self, config: EngineConfig, run: RunDir, plan: Plan, state: TrainerState, accelerator: Accelerator,
                 hooks: Sequence[Hook]) -> None:
        self._config, self._run, self._plan, self._state = config, run, plan, state
        self._accelerator, self._hooks = accelerator, hooks
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began_at = state.global_step
        self._elapsed_before = state.elapsed

    def __enter__(self) -> Self:
        hidden = self._config.disable_tqdm if self._config.disable_tqdm is not None else not sys.stderr.isatty()
        if is_main_process() and not hidden:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("train", total=self._plan.total_steps, completed=self._began_at, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, loss: float, learning_rate: float) -> None:
        """Show one finished step."""
        if self._bar is not None:
            note = f"loss {loss:.4f}  lr {learning_rate:.2e}  {self._tokens_per_second():,.0f} tok/s"
            self._bar.update(self._task, completed=self._state.global_step, note=note)
        for hook in self._hooks:
            hook.on_step(self._state.global_step)

    def training(self, values: Mapping[str, float]) -> None:
        """Record a row of training: loss, learning_rate, grad_norm and the stage's own metrics."""
        row: LogRow = dict(values)
        if self._config.include_num_input_tokens_seen != "no":
            row["num_input_tokens_seen"] = self._state.num_input_tokens_seen
        if self._config.include_effective_tokens_per_second:
            row["effective_tokens_per_sec"] = round(self._tokens_per_second(), 2)
        self._record(row)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Record the numbers of one evaluation."""
        self._record(dict(metrics))

    def saved(self, step: int, folder: Path) -> None:
        """Tell that the checkpoint of `step` is on the disk."""
        self._run.append_text(f"step {step}: saved {folder.name}")
        for hook in self._hooks:
            hook.on_save(step, folder)

    def _record(self, row: LogRow) -> None:
        state = self._state
        # JSON has no infinity: the norm of a step that float16 scaling skips, the perplexity of an untrained model
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        entry = row | {"epoch": round(state.epoch, 4), "step": state.global_step}
        state.log_history.append(entry)
        journal = self._journal_row(row)
        self._run.append_log(journal)
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        if self._accelerator.log_with:
            self._accelerator.log({_tracker_name(name): value for name, value in numbers.items()},
                                  step=state.global_step)
        line = self._line(journal)
        self._run.append_text(line)
        if self._bar is None:
            say(line)
        for hook in self._hooks:
            hook.on_log(state.global_step, entry)

    def _journal_row(self, row: LogRow) -> LogRow:
        state, total = self._state, self._plan.total_steps
        done_here = max(state.global_step - self._began_at, 1)
        left = (state.elapsed - self._elapsed_before) / done_here * (total - state.global_step)
        renamed = {("lr" if name == "learning_rate" else name): value for name, value in row.items()}
        return {
            "current_steps": state.global_step, "total_steps": total, **renamed, "epoch": round(state.epoch, 4),
            "percentage": round(100 * state.global_step / total, 2), "elapsed_time": _clock(state.elapsed),
            "remaining_time": _clock(left), "tokens_per_second": round(self._tokens_per_second(), 2),
            "total_tokens": state.num_input_tokens_seen,
        }

    def _tokens_per_second(self) -> float:
        return self._state.num_input_tokens_seen / self._state.elapsed if self._state.elapsed else 0.0

    def _line(self, row: LogRow) -> str:
        shown = ("loss", "eval_loss", "eval_perplexity", "reward", "eval_reward", "kl", "length", "accuracy",
                 "eval_accuracy", "rewards/accuracies", "eval_rewards/accuracies", "lr", "grad_norm")
        numbers = "  ".join(f"{name} {row[name]:.4g}" for name in shown if row.get(name) is not None)
        return (f"step {row['current_steps']}/{row['total_steps']}  {numbers}  epoch {row['epoch']:.2f}  "
                f"{row['tokens_per_second']:,.0f} tok/s  left {row['remaining_time']}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _tracker_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
