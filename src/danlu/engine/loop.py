"""The one training loop. It never knows which stage it runs.

    prepare -> split into micro-batches -> loss -> backward of sum / the step's global count -> clip -> step

The parts: plan (how many steps), sampler (which examples), step (the arithmetic), session (what a run holds),
checkpoint and resume (what survives), reporting (what is told).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from danlu.core.console import is_main_process, notice, say
from danlu.core.errors import ConfigError, OutsideError
from danlu.core.run_dir import RunDir
from danlu.engine import distributed, optimizers, trackers
from danlu.engine.config import EngineConfig
from danlu.engine.evaluate import EvalSets, Examples, evaluate, named_sets
from danlu.engine.faults import STOP_SIGNALS, Interrupted, StopSignal
from danlu.engine.hooks import Hook
from danlu.engine.optimizers import Groups
from danlu.engine.plots import plot_losses
from danlu.engine.resume import Saver
from danlu.engine.session import Session, open_session
from danlu.engine.step import StepResult
from danlu.engine.surroundings import place_frozen, surroundings
from danlu.stages.base import Stage, by_number


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended. `metrics` is what train_results.json holds."""

    steps: int
    metrics: dict[str, float]
    best_checkpoint: Path | None = None
    resumed_from: Path | None = None
    stopped_early: bool = False
    history: Sequence[dict[str, Any]] = field(default=())


class Engine:
    """Trains and evaluates any stage. `record` is the resolved configuration, for the trackers."""

    def __init__(self, config: EngineConfig, run: RunDir, saver: Saver, *, hooks: Sequence[Hook] = (),
                 record: Mapping[str, Any] | None = None) -> None:
        self._config, self._run, self._saver = config, run, saver
        self._hooks, self._record = hooks, dict(record or {})
        self._started: Accelerator | None = None

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes of this run; started at the first use."""
        if self._started is None:
            self._started = distributed.start(self._config, self._run.path, trackers.chosen(self._config))
        return self._started

    def fit(self, stage: Stage, dataset: Examples, eval_dataset: EvalSets = None, *,
            groups: Groups | None = None) -> TrainResult:
        """Train to the end of the plan, or from the last checkpoint on.

        groups  parameter groups of the optimiser; unset: all trainable parameters, matrices with weight decay
        Raises Interrupted after Ctrl-C or SIGTERM (a checkpoint is written), NonFiniteError on NaN.
        """
        eval_sets = named_sets(eval_dataset)
        if self._config.eval_strategy != "no" and not eval_sets:
            raise ConfigError(f"eval_strategy is {self._config.eval_strategy} and there is nothing to evaluate on",
                              fix="set eval_dataset or val_size, or eval_strategy: no")
        with StopSignal() as stop, optimizers.quiet_optimizer():
            session = open_session(self._config, self._run, self._saver, self.accelerator, stage, dataset, eval_sets,
                                   groups, self._hooks)
            self._start_trackers()
            self._run.begin()
            try:
                with session.reporter:
                    self._train(session, stop)
                return self._finish(session)
            finally:
                session.close()

    def evaluate(self, stage: Stage, dataset: EvalSets) -> dict[str, float]:
        """Return eval_loss, perplexity and the stage's metrics; write eval_results.json."""
        self._run.begin()
        models, policy = stage.models, stage.models.policy
        models.policy = self.accelerator.prepare_model(policy.eval(), evaluation_mode=True)
        place_frozen(stage, self.accelerator)
        stage.surroundings = surroundings(self.accelerator, by_number(self._config.per_device_eval_batch_size),
                                          seed=self._config.seed, folder=self._run.path)
        try:
            metrics = evaluate(stage, named_sets(dataset), self.accelerator, self._config.per_device_eval_batch_size)
        finally:
            models.policy = self.accelerator.unwrap_model(models.policy, keep_fp32_wrapper=False)
        self._run.write_results("eval", metrics)
        return metrics

    def _train(self, session: Session, stop: StopSignal) -> None:
        state, plan = session.state, session.plan
        if state.global_step >= plan.total_steps:
            notice(f"nothing left to train: the run ended at step {state.global_step} "
                   "(raise num_train_epochs or max_steps to go on)")
        if self._config.eval_on_start and state.global_step == 0:
            self._evaluate(session)
        while state.global_step < plan.total_steps and not self._is_stale(session):
            result = self._step(session)
            session.tick()
            session.reporter.step(result.loss, session.schedule.learning_rate)
            self._after_step(session, result)
            self._leave_if_asked(session, stop)

    def _step(self, session: Session) -> StepResult:
        """Take a step; when something outside the run fails, keep what is learnt so far and stop."""
        try:
            return session.step()
        except OutsideError:
            if session.saved_step != session.state.global_step > 0:
                self._save(session, weights_only=False)
                session.settle()
                say(f"the run is saved in {self._run.checkpoint(session.state.global_step)}")
            raise

    def _after_step(self, session: Session, result: StepResult) -> None:
        plan, step = session.plan, session.state.global_step
        session.fresh_metrics = {}
        if plan.is_log(step) or (step == 1 and self._config.logging_first_step):
            self._log(session, result)
        improved = plan.is_eval(step) and self._evaluate(session)
        if plan.is_save(step) or (improved and self._config.save_strategy == "best"):
            self._save(session, weights_only=self._config.save_only_model)

    def _log(self, session: Session, result: StepResult) -> None:
        state = session.state
        steps = state.window_steps
        means = session.stage.report({name: value / steps for name, value in state.window_metrics.items()})
        session.reporter.training({
            "loss": state.window_loss / steps, "grad_norm": result.grad_norm,
            "learning_rate": session.schedule.learning_rate, **means})
        state.window_loss, state.window_steps, state.window_metrics = 0.0, 0, {}

    def _evaluate(self, session: Session) -> bool:
        """Evaluate, note the best; return True when this evaluation is the best so far."""
        state, policy = session.state, session.stage.models.policy
        policy.eval()
        metrics = evaluate(session.stage, session.eval_sets, session.accelerator,
                           self._config.per_device_eval_batch_size)
        policy.train()
        session.tick()
        session.fresh_metrics = metrics
        session.reporter.evaluation(metrics)
        value = self._watched(metrics)
        session.schedule.after_evaluation(value)
        if not self._is_better(value, state.best_metric):
            state.stale += 1
            return False
        state.best_metric, state.best_step, state.stale = value, state.global_step, 0
        return True

    def _save(self, session: Session, *, weights_only: bool) -> None:
        state = session.state
        if session.fresh_metrics and state.best_step == state.global_step:
            state.best_model_checkpoint = str(self._run.checkpoint(state.global_step))
        session.save(weights_only=weights_only)
        session.tick()

    def _leave_if_asked(self, session: Session, stop: StopSignal) -> None:
        asked = [float(stop.number == number) for number in STOP_SIGNALS]
        received = [number for number, ranks in zip(
            STOP_SIGNALS, distributed.sum_over_ranks(session.accelerator, asked), strict=True) if ranks]
        if received:
            if session.saved_step != session.state.global_step:
                self._save(session, weights_only=False)
            session.settle()
            raise Interrupted(received[0], str(self._run.checkpoint(session.state.global_step)))

    def _watched(self, metrics: Mapping[str, float]) -> float:
        wanted = self._config.metric_for_best_model or "loss"
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            raise ConfigError(f'metric_for_best_model "{wanted}" is no result of the evaluation',
                              fix=f"known: {', '.join(sorted(metrics))}")
        return metrics[name]

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None or not math.isfinite(value):
            return math.isfinite(value)
        greater = self._config.greater_is_better
        if greater is None:
            greater = not (self._config.metric_for_best_model or "loss").endswith(("loss", "perplexity", "ece"))
        return value > best if greater else value < best

    def _is_stale(self, session: Session) -> bool:
        limit = self._config.early_stopping_steps
        return limit is not None and session.state.stale >= limit

    def _finish(self, session: Session) -> TrainResult:
        session.settle()
        state, stopped_early = session.state, session.state.global_step < session.plan.total_steps
        if stopped_early:
            say(f"stopped early at step {state.global_step}: {state.stale} evaluations without gain")
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        if self._config.load_best_model_at_end and best is not None:
            self._saver.restore(session.policy, best)
            notice(f"the final weights are those of {best.name}, the best evaluation ({state.best_metric:.6g})")
        metrics = self._metrics(session)
        self._run.write_results("train", metrics)
        self._run.write_json("trainer_state.json", state.to_json())
        is_online = session.stage.models.rollouts is not None  # whose course a loss does not show
        if (self._config.plot_loss or is_online) and is_main_process():
            plot_losses(state.log_history, self._run.path)
        return TrainResult(state.global_step, metrics, best, session.resumed_from, stopped_early, state.log_history)

    def _metrics(self, session: Session) -> dict[str, float]:
        state = session.state
        seconds = max(state.elapsed, 1e-9)
        metrics = {
            "epoch": round(state.epoch, 4), "total_flos": state.total_flos,
            "train_loss": state.loss_sum / max(state.global_step, 1), "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(state.num_examples_seen / seconds, 3),
            "train_steps_per_second": round(state.global_step / seconds, 3),
        }
        if self._config.include_num_input_tokens_seen != "no":
            metrics["num_input_tokens_seen"] = state.num_input_tokens_seen
        if self._config.include_effective_tokens_per_second:
            metrics["effective_tokens_per_sec"] = round(state.num_input_tokens_seen / seconds, 2)
        return metrics

    def _start_trackers(self) -> None:
        names = trackers.chosen(self._config)
        if names:
            plain = {k: v for k, v in self._record.items() if isinstance(v, (str, int, float, bool))}
            self.accelerator.init_trackers(self._config.project, plain,
                                           trackers.settings(self._config, names, self._run.path))
