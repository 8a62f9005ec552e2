"""What ends a run early: Ctrl-C, SIGTERM, and losses that are no numbers."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from danlu.core.console import say
from danlu.core.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop and has left a checkpoint. `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int, checkpoint: str) -> None:
        self.exit_code = 128 + signal_number
        self.checkpoint = checkpoint
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name}; the run is saved in {checkpoint}\n"
            f"  resume: run the same command again (without overwrite_output_dir)")


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite."""

    def __init__(self, what: str, step: int, rows: Sequence[str], detail: str) -> None:
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        super().__init__(
            f"{what} at step {step}; rows: {shown or 'none'}{detail}", where="training",
            fix="look at these rows; lower learning_rate or max_grad_norm; prefer bf16 to fp16. "
                "Checkpoints written before this step are untouched")


class StopSignal:
    """Remember the first Ctrl-C or SIGTERM until the step is done; a second Ctrl-C aborts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving a checkpoint "
            "(Ctrl-C again stops at once, without saving)")
