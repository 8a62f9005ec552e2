"""What danlu says to the person at the terminal: notices once, warnings always, only from the first process."""

import os
import sys

_SAID: set[str] = set()


def is_main_process() -> bool:
    """Return True in the process that may print and write files (rank 0, or a single process)."""
    return os.environ.get("RANK", "0") == "0"


def launched_processes() -> int:
    """Return how many processes the launcher says it started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(text: str) -> None:
    """Print one line of progress to standard error."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def notice(text: str) -> None:
    """Say once what danlu did differently from what the reader may expect."""
    if text not in _SAID:
        _SAID.add(text)
        say(f"notice: {text}")


def forget_notices() -> None:
    """Let every notice be said again: a second run in the same process has a reader of its own."""
    _SAID.clear()


def warn(text: str) -> None:
    """Say what is likely to be wrong though the run goes on."""
    say(f"warning: {text}")
