"""Run a command in a process of its own; pass stop signals on, and report what it cost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Finished:
    """How a process ended. `stopped_by` is the signal that was passed on to it, 0 if none."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    stopped_by: int


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run `command` to its end with our terminal as its output; `python` and `danlu` in it are those running now.

    The child leads a process group of its own, so that Ctrl-C reaches it once: from us. `environment` stands behind
    the variables that are set already. Raises OSError when there is no such program.
    """
    start = time.monotonic()
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with (subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0,
                           env={**(environment or {}), **os.environ, "PATH": paths}) as child,
          _passing_on(child) as received):
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return Finished(child.returncode, time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak,
                    received[0] if received else 0)


@contextmanager
def _passing_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM on to the child's group while it runs; yield those received."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        with suppress(ProcessLookupError):  # it may have ended a moment ago
            os.killpg(child.pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
