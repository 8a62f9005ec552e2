"""`danlu rollouts RUN_DIR`: write the page of a run's sampled answers. Parses and prints; no logic of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from danlu.core.errors import DataError
from danlu.core.run_dir import ROLLOUT_FILE
from danlu.data.microscope.rollout_page import write_rollout_page

USAGE = """usage: danlu rollouts RUN_DIR ...

Write RUN_DIR/rollouts.html from the answers that a run has sampled (rollouts.jsonl), also while it goes on.
The page needs no network: choose steps, sort by reward, length or KL, search, lay the answers of a prompt side by side.
rollout_log_samples says how many answers of each step a run keeps."""


def main(argv: Sequence[str]) -> int:
    """Write the page of each run; return the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    for word in argv:
        folder = Path(word)
        folder = folder.parent if folder.name == ROLLOUT_FILE else folder
        page = write_rollout_page(folder)
        if page is None:
            raise DataError("no sampled answers here", where=str(folder / ROLLOUT_FILE),
                            fix="name the output_dir of a run that samples, with rollout_log_samples above 0")
        print(page)
    return 0
