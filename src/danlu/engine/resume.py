"""Going on from a checkpoint: put everything back, and refuse to pretend that a changed run is the same run."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from danlu.core.console import notice
from danlu.core.errors import ConfigError
from danlu.engine.config import EngineConfig
from danlu.engine.plan import Plan
from danlu.stages.base import Stage

# Without these the optimiser's state fits nothing.
_STRUCTURE = ("optim", "trained_parameters")
# These may change without touching what the next step computes.
_HARMLESS = ("processes", "per_device_train_batch_size", "total_steps", "reward_timeout", "reward_retries",
             "reward_batch_size", "rollout_log_samples", "reference_cache")


class Saver(Protocol):
    """Writes the policy as its user loads it, and reads exactly that back."""

    def begin(self, policy: nn.Module, folder: Path) -> Callable[[], None]:
        """Write into `folder` what is small; return what writes the weights as they are when it is called."""

    def restore(self, policy: nn.Module, folder: Path) -> None:
        """Load the weights of `save` into an already built policy, bit for bit."""


def fingerprint(config: EngineConfig, plan: Plan, data: str, policy: nn.Module, processes: int,
                stage: Stage) -> dict[str, Any]:
    """Return what decides the numbers of a run, under the names of its keys."""
    rollouts = stage.models.rollouts
    own: dict[str, Any] = {"stage": type(stage).__name__.lower()} | stage.config.model_dump(mode="json")
    own |= {} if rollouts is None else rollouts.settings.model_dump(mode="json")
    named = ("per_device_train_batch_size", "seed", "data_seed", "disable_shuffling", "group_by_length",
             "dataloader_drop_last", "optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
             "adam_epsilon", "max_grad_norm", "loraplus_lr_ratio", "loraplus_lr_embedding", "neftune_noise_alpha",
             "label_smoothing_factor", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio",
             "bf16", "fp16")
    values = {name: getattr(config, name) for name in named}
    return values | own | {
        "data": data, "examples": plan.num_examples, "examples_per_step": plan.global_batch,
        "total_steps": plan.total_steps, "processes": processes, "trained_parameters": _shapes(policy)}


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, explicit: bool) -> bool:
    """Compare fingerprints; return True when the run goes on with changed settings.

    A change that breaks exactness is refused when the run resumes by itself, and announced when the user named
    resume_from_checkpoint.
    """
    changed = {name: (saved[name], value) for name, value in now.items() if name in saved and saved[name] != value}
    broken = [name for name in _STRUCTURE if name in changed]
    if broken:
        raise ConfigError(f"cannot be resumed: changed since: {_list(changed, broken)}", where=str(folder),
                          fix="restore these settings, or start a new run from its weights (model_name_or_path or "
                              "adapter_name_or_path) in another output_dir")
    inexact = [name for name in changed if name not in _HARMLESS]
    if inexact and not explicit:
        raise ConfigError(
            f"this is not the same run: changed since: {_list(changed, inexact)}", where=str(folder),
            fix="restore these settings; or set resume_from_checkpoint: true to go on with the new ones; or set "
                "overwrite_output_dir: true to start anew")
    if inexact:
        notice(f"resuming with changed settings, not the same as a run that never stopped: {_list(changed, inexact)}")
    harmless = [name for name in changed if name in _HARMLESS]
    if harmless:
        notice(f"resuming with another {_list(changed, harmless)}")
    return bool(inexact)


def _list(changed: Mapping[str, tuple[Any, Any]], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {changed[name][0]} -> {changed[name][1]}" for name in names)


def _shapes(policy: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}\n".encode())
    return digest.hexdigest()[:16]
