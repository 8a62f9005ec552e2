"""Where a profiler or a remote monitor attaches to the loop. Hooks observe; they change nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Hook:
    """Base of every observer; override what is of interest."""

    def on_step(self, step: int) -> None:
        """Follow an optimiser step (1-based)."""

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        """Follow a row of the log."""

    def on_save(self, step: int, folder: Path) -> None:
        """Follow a checkpoint that is whole on the disk."""
