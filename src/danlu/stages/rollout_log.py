"""The answers of a run as they are sampled and rewarded: rollouts.jsonl. Knows nothing of models or tensors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.core.console import is_main_process
from danlu.core.errors import UserError
from danlu.core.run_dir import ROLLOUT_FILE, write_whole


class RolloutLog:
    """rollouts.jsonl of one run, one answer a line. Every process may hold one; only the first process writes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROLLOUT_FILE
        self._is_open = False

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the answers of one step. Raises UserError when the disk takes no more.

        The first call drops the lines of this step and of later ones: a run that goes on from a checkpoint writes
        them again.

        rows  index (data-set position), sample, origin, prompt (text, or messages of role and content), answer,
              reward, rewards ({source: value}), kl (a sum over tokens), length (tokens), whole (a stop token came),
              and what else a stage tells
        """
        if not is_main_process():
            return
        if not self._is_open:
            self.rewind(step - 1)
            self._is_open = True
        lines = [json.dumps({"step": step, **row}, ensure_ascii=False, default=float) + "\n" for row in rows]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror or error}", where=str(self.path),
                            fix="free space on this disk; the run goes on from its last checkpoint") from error

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, and a line that a killed run left half; a second call changes nothing.

        The file is replaced whole or not at all.
        """
        if not is_main_process() or not self.path.is_file():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and (_step(line) or step + 1) <= step]
        if kept != lines:
            write_whole(self.path, b"".join(kept).decode("utf-8"))


def _step(line: bytes) -> int | None:
    """Return the step of a line, None when it is not a whole line of ours."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
