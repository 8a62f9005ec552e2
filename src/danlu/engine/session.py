"""Everything one run of the loop holds: built once, restored from a checkpoint when there is one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from danlu.core.console import notice, say, warn
from danlu.core.run_dir import RunDir
from danlu.data.streaming.token_stream import TokenStream
from danlu.engine import checkpoint, distributed, optimizers
from danlu.engine.config import EngineConfig
from danlu.engine.evaluate import Examples
from danlu.engine.hooks import Hook
from danlu.engine.micro_batches import CPU_TOKENS, MicroBatches
from danlu.engine.plan import Plan
from danlu.engine.reporting import Reporter
from danlu.engine.resume import Saver, check_same_run, fingerprint
from danlu.engine.sampler import Sampler, StreamBatches, share
from danlu.engine.schedules import Schedule
from danlu.engine.state import TrainerState, random_state, restore_random_state
from danlu.engine.step import Stepper, StepResult
from danlu.engine.surroundings import place_frozen, surroundings
from danlu.engine.writer import Saved, Writer
from danlu.models.compiling import compile_layers
from danlu.stages.base import Stage


@dataclass(slots=True)
class Session:
    """A run in memory. `policy` is the plain module; `stage.models.policy` is its wrapped form."""

    config: EngineConfig
    run: RunDir
    saver: Saver
    accelerator: Accelerator
    stage: Stage
    policy: nn.Module
    dataset: Examples
    eval_sets: dict[str, Examples]
    plan: Plan
    sampler: Sampler | StreamBatches
    optimizer: Any
    schedule: Schedule
    stepper: Stepper
    state: TrainerState
    reporter: Reporter
    writer: Writer
    flops_per_token: float
    resumed_from: Path | None = None
    saved_step: int = -1
    fresh_metrics: dict[str, float] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Add the time since the last tick to the time the run has taken."""
        now = time.monotonic()
        self.state.elapsed += now - self._clock
        self._clock = now

    def step(self) -> StepResult:
        """Take one step of the loop: its examples, forward, backward, update, new learning rate."""
        state, number = self.state, self.state.global_step
        batch = self.sampler.batch(number)
        own = share(batch, self.accelerator.process_index, self.accelerator.num_processes)
        examples = [self.dataset[i] for i in own or batch[:1]]
        result = self.stepper.run(examples, counts=bool(own), step=number + 1)
        if not self.optimizer.step_was_skipped:
            self.schedule.after_step()
        state.global_step = number + 1
        state.epoch = self.dataset.epoch if isinstance(self.dataset, TokenStream) else self.plan.epoch(number + 1)
        state.num_input_tokens_seen += result.tokens
        state.num_examples_seen += len(batch)
        state.total_flos += self.flops_per_token * result.tokens
        state.loss_sum += result.loss
        state.window_loss += result.loss
        state.window_steps += 1
        for name, value in result.metrics.items():
            state.window_metrics[name] = state.window_metrics.get(name, 0.0) + value
        if self.accelerator.num_processes == 1:  # several tell together, when they meet in `settle`
            self._tell(self.writer.collect())
        return result

    def save(self, *, weights_only: bool) -> None:
        """Write a checkpoint of this moment, after the one in flight; the random state is left as it was."""
        random_states = distributed.gather_lists(self.accelerator, [random_state()])
        state = self.state

        def begin() -> Saved | None:
            draft = checkpoint.Draft(self.run, state.global_step)
            draft.open()
            with draft.guarded():
                write_weights = self.saver.begin(self.policy, draft.folder)
            tensors = {} if weights_only else self._tensors(random_states)
            contents = checkpoint.Contents(write_weights, state.to_json(), tensors)
            best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
            self.writer.start(lambda: draft.store(contents), lambda: self._seal(draft, contents, best))
            return None if self.writer.in_background else self.writer.wait()

        self.settle()
        saved = distributed.on_main(self.accelerator, begin)
        restore_random_state(random_states[self.accelerator.process_index])
        self.saved_step = -1 if weights_only else state.global_step
        self._tell(saved)

    def settle(self) -> None:
        """Return when the checkpoint in flight, if any, is whole. Raises UserError when it could not be written."""
        self._tell(distributed.on_main(self.accelerator, self.writer.wait))

    def _seal(self, draft: checkpoint.Draft, contents: checkpoint.Contents, best: str | None) -> Saved:
        draft.seal(resumable=bool(contents.tensors))
        self.run.write_json("trainer_state.json", contents.state)
        checkpoint.rotate(self.run, self.config.save_total_limit, best)
        return Saved(draft.step, draft.final)

    def _tell(self, saved: Saved | None) -> None:
        if saved is not None:
            self.reporter.saved(saved.step, saved.folder)

    def restore(self, folder: Path) -> None:
        """Put optimiser, schedule, scaler and random state back; the weights are in place already."""
        changed = check_same_run(self.state.fingerprint, self._fingerprint(), folder,
                                 explicit=bool(self.config.resume_from_checkpoint))
        configured = [{k: v for k, v in group.items() if k not in ("params", "lr")}
                      for group in self.optimizer.param_groups]
        optimizers.load_optimizer_state(self.optimizer.optimizer, checkpoint.load_tensors(folder, "optimizer.pt"))
        if changed:
            for group, values in zip(self.optimizer.param_groups, configured, strict=True):
                group.update(values)
        self.schedule.load_state_dict(checkpoint.load_tensors(folder, "scheduler.pt"), keep_base=changed)
        scaler = checkpoint.load_tensors(folder, "scaler.pt")
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        own = checkpoint.load_tensors(folder, "stage.pt")
        if own is not None:
            self.stage.load_state(own)
        random_states = checkpoint.load_tensors(folder, "rng_state.pt")
        if self.accelerator.process_index < len(random_states):
            restore_random_state(random_states[self.accelerator.process_index])
        stream = checkpoint.load_tensors(folder, "stream.pt")
        if stream is not None and isinstance(self.dataset, TokenStream):
            self.dataset.restore(stream)
        self.resumed_from = folder

    def close(self) -> None:
        """Finish the checkpoint in flight, give the plain modules back to the stage, and finish the trackers."""
        if (error := self.writer.close()) is not None:
            warn(str(error))
        models = self.stage.models
        models.policy = self.accelerator.unwrap_model(models.policy, keep_fp32_wrapper=False)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()

    def _tensors(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        tensors: dict[str, Any] = {
            "optimizer.pt": self.optimizer.state_dict(), "scheduler.pt": self.schedule.state_dict(),
            "rng_state.pt": random_states}
        if own := self.stage.state():
            tensors["stage.pt"] = own
        if self.accelerator.scaler is not None:
            tensors["scaler.pt"] = self.accelerator.scaler.state_dict()
        if isinstance(self.dataset, TokenStream):
            tensors["stream.pt"] = self.dataset.state()
        return tensors

    def _fingerprint(self) -> dict[str, Any]:
        return fingerprint(self.config, self.plan, self.dataset.fingerprint, self.policy,
                           self.accelerator.num_processes, self.stage)


def open_session(config: EngineConfig, run: RunDir, saver: Saver, accelerator: Accelerator, stage: Stage,
                 dataset: Examples, eval_sets: dict[str, Examples], groups: optimizers.Groups | None,
                 hooks: Sequence[Hook]) -> Session:
    """Build a session; resume it when the output folder or resume_from_checkpoint says so."""
    distributed.on_main(accelerator, lambda: checkpoint.remove_leftovers(run))
    folder = distributed.on_main(accelerator, lambda: checkpoint.find_resume(
        run, config.resume_from_checkpoint, overwrite=config.overwrite_output_dir))
    plan = Plan.of(config, len(dataset), accelerator.num_processes, batches=stage.batches_of(stage.config))
    distributed.seed_everything(config.seed + accelerator.process_index)
    policy = stage.models.policy
    state = TrainerState() if folder is None else TrainerState.from_json(checkpoint.load_state(folder))
    groups = groups if groups is not None else optimizers.default_groups(policy, config)
    if folder is not None:
        saver.restore(policy, folder)
    _place(stage, accelerator, config)
    cut = _cut(config, policy, accelerator)
    stage.surroundings = surroundings(accelerator, cut.deal, seed=config.seed, folder=run.path)
    optimizer = accelerator.prepare_optimizer(optimizers.make_optimizer(groups, config))
    schedule = Schedule(optimizer.optimizer, config, plan.total_steps)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    writer = Writer(in_background=_saves_in_background(config, accelerator))
    stepper = Stepper(accelerator, stage, stage.models.policy, optimizer, trained, cut, config.max_grad_norm,
                      dataset.origin, writer.before_change)
    session = Session(
        config, run, saver, accelerator, stage, policy, dataset, eval_sets, plan, _sampler(config, plan, dataset),
        optimizer, schedule, stepper, state, Reporter(config, run, plan, state, accelerator, hooks),
        writer,
        flops_per_token=6.0 * _active_parameters(policy))
    _announce(session, folder)
    if folder is not None:
        session.restore(folder)
        run.rewind_log(state.global_step)
    state.max_steps = plan.total_steps
    state.fingerprint = session._fingerprint()
    return session


def _place(stage: Stage, accelerator: Accelerator, config: EngineConfig) -> None:
    models = stage.models
    if config.torch_compile:
        compile_layers(models.policy, backend=config.torch_compile_backend, mode=config.torch_compile_mode)
    models.policy.train()
    models.policy = distributed.wrap(accelerator, models.policy)
    place_frozen(stage, accelerator)


def _sampler(config: EngineConfig, plan: Plan, dataset: Examples) -> Sampler | StreamBatches:
    if isinstance(dataset, TokenStream):
        return StreamBatches(dataset, plan.global_batch, config.dataloader_drop_last)
    seed = config.data_seed if config.data_seed is not None else config.seed
    return Sampler(plan.num_examples, plan.global_batch, seed, not config.disable_shuffling,
                   config.dataloader_drop_last, dataset.lengths, config.group_by_length)


def _saves_in_background(config: EngineConfig, accelerator: Accelerator) -> bool:
    """Of several processes only the first would learn of a failed write, so that has to be asked for."""
    return accelerator.num_processes == 1 if config.async_save is None else config.async_save


def _cut(config: EngineConfig, policy: nn.Module, accelerator: Accelerator) -> MicroBatches:
    tables = [module for module in policy.modules() if isinstance(module, nn.Embedding)]
    return MicroBatches(config.per_device_train_batch_size, config.micro_batch_tokens,
                        width=tables[0].embedding_dim if tables else 0,
                        most=CPU_TOKENS if accelerator.device.type == "cpu" else None)


def _active_parameters(policy: nn.Module) -> int:
    """Count parameters outside embedding tables; a byte of a 4-bit weight holds two of them."""
    tables = {id(p) for module in policy.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return sum(p.numel() * (2 if type(p).__name__ == "Params4bit" else 1)
               for p in policy.parameters() if id(p) not in tables)


def _announce(session: Session, folder: Path | None) -> None:
    plan, config = session.plan, session.config
    batches = session.stage.batches_of(session.stage.config)
    buffered = f" x {batches} batches" if batches > 1 else ""
    say(f"training: {plan.num_examples} examples, {plan.global_batch} per step "
        f"({config.per_device_train_batch_size} x {config.gradient_accumulation_steps} accumulated x "
        f"{session.accelerator.num_processes} processes{buffered}), {plan.steps_per_epoch} steps per epoch, "
        f"{plan.total_steps} steps on {session.accelerator.device}")
    if folder is not None:
        notice(f"resuming from {folder} at step {session.state.global_step} of {plan.total_steps} "
               "(overwrite_output_dir: true starts anew)")
