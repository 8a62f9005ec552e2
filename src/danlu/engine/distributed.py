"""One process or many: placement, precision and sums over processes, on accelerate."""

import os
import random
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)
from torch import nn

from danlu.core.console import launched_processes
from danlu.core.errors import CapabilityError, UserError
from danlu.engine.config import EngineConfig

T = TypeVar("T")


def start(config: EngineConfig, project_dir: Path, log_with: list[str]) -> Accelerator:
    """Join the processes of the launch environment (torchrun, accelerate) and choose device and precision."""
    _check_capabilities(config)
    if AcceleratorState._shared_state:
        # A process may train twice (a pipeline, a test); the precision of the first run must not stick.
        AcceleratorState._reset_state(reset_partial_state=not is_joined())
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=bool(config.ddp_broadcast_buffers), bucket_cap_mb=config.ddp_bucket_cap_mb or 25,
        find_unused_parameters=bool(config.ddp_find_unused_parameters))
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout), backend=config.ddp_backend)
    logs = config.logging_dir or str(project_dir / "runs")
    accelerator = Accelerator(
        mixed_precision="bf16" if config.bf16 else "fp16" if config.fp16 else "no", cpu=_stays_on_cpu(config),
        log_with=log_with or None, kwargs_handlers=[ddp, group],
        project_config=ProjectConfiguration(project_dir=str(project_dir), logging_dir=logs))
    wanted = launched_processes()
    if wanted != accelerator.num_processes:
        raise CapabilityError(f"the launcher started {wanted} processes and {accelerator.num_processes} joined",
                              where="training", fix="check the launcher's environment: RANK, WORLD_SIZE, MASTER_ADDR")
    if config.tf32 is not None:
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.full_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def _stays_on_cpu(config: EngineConfig) -> bool:
    """Without a GPU accelerate must be told so: else each process of a group trains by itself, and none says so."""
    return config.use_cpu or not torch.accelerator.is_available()


def is_joined() -> bool:
    """Return True when this process belongs to a group of processes."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def wrap(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Place a trainable module on the device, in DDP when there are several processes."""
    with warnings.catch_warnings():
        # Buffers are not sent at every forward: a process without a share of an evaluation makes none, and would hang
        # the others. torch 2.13 deprecates the switch before offering another that keeps them apart at the start.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped: nn.Module = accelerator.prepare_model(module)
    return wrapped


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def sum_over_ranks(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Return the sums of `values` over all processes, added in float64."""
    if accelerator.num_processes == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(total)
    summed: list[float] = total.tolist()
    return summed


def gather_lists(accelerator: Accelerator, items: list[T]) -> list[T]:
    """Return the items of all processes, in the order of the processes."""
    if accelerator.num_processes == 1:
        return items
    gathered: list[T] = gather_object(items)
    return gathered


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` in the first process and give its result, or its user error, to all."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def _check_capabilities(config: EngineConfig) -> None:
    has_gpu = torch.cuda.is_available() and not config.use_cpu
    if config.fp16 and not has_gpu:
        raise CapabilityError("fp16 needs a GPU: float16 training with loss scaling does not run on the CPU",
                              where="fp16", fix="set bf16: true, or leave both out for float32")
    if config.bf16 and has_gpu and not torch.cuda.is_bf16_supported():
        raise CapabilityError("this GPU has no bfloat16", where="bf16", fix="set fp16: true instead")
