"""Where a run stands: counters, log history and random state; everything a resumed run needs beside tensors."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch

LogRow = dict[str, Any]


@dataclass(slots=True)
class TrainerState:
    """Written to trainer_state.json, in the names of transformers where it has one.

    total_flos    6 x parameters outside embeddings x tokens, the convention of transformers
    loss_sum      sum of the losses of all steps so far
    window_*      the same since the last log row
    elapsed       seconds spent in steps, evaluations and saves, over all sessions
    stale         evaluations since the best one
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    num_input_tokens_seen: int = 0
    num_examples_seen: int = 0
    total_flos: float = 0.0
    loss_sum: float = 0.0
    window_loss: float = 0.0
    window_steps: int = 0
    window_metrics: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    best_metric: float | None = None
    best_step: int | None = None
    best_model_checkpoint: str | None = None
    stale: int = 0
    log_history: list[LogRow] = field(default_factory=list)
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a map that JSON holds without loss."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process, in types that torch.load takes as safe."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every random generator back to where `random_state` found it."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
