"""What every peer's run leaves behind: when each optimiser step ended, by two clocks, its loss, its gradient norm."""

import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

PACKAGES = ("trl", "llamafactory", "transformers", "peft", "accelerate", "torch")


class Clock(TrainerCallback):
    """Notes the time at the end of each step and what is logged of it, and writes `answer` when training ends.

    logging_steps must be 1.
    """

    def __init__(self, answer: Path) -> None:
        self.answer = answer
        self.began = time.time()
        self.ends: list[float] = []
        self.cpu_ends: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time and the tokens seen so far."""
        self.ends.append(time.time())
        self.cpu_ends.append(time.process_time())
        self.tokens.append(int(state.num_input_tokens_seen))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Note the loss of a step."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.grad_norms.append(float(logs.get("grad_norm", 0.0)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what was noted, before anything is saved."""
        self.answer.write_text(json.dumps({
            "began": self.began, "ends": self.ends, "cpu_ends": self.cpu_ends, "tokens": self.tokens,
            "losses": self.losses,
            "grad_norms": self.grad_norms, "versions": versions()}), encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of the packages that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
