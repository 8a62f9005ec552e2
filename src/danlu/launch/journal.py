"""What a pipeline remembers of its steps, in the folder `steps` of its output: the file of each verb, begun, done."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danlu.core.run_dir import write_json, write_whole

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a step's last run. `run` differs between any two runs, equal or not."""

    fingerprint: str
    run: str
    is_done: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


class Journal:
    """The marks of a pipeline's steps on disk."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / "steps"

    def file(self, step: str) -> Path:
        """Return the path of the file that the step's verb reads."""
        return self.folder / f"{step}.yaml"

    def write_file(self, step: str, values: Mapping[str, Any]) -> Path:
        """Write the file of the step's verb, one key a line, and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.file(step), verb_file(values))
        return self.file(step)

    def read(self, step: str) -> Mark | None:
        """Return the mark of the step's last run, None if it never began."""
        path = self._mark(step)
        return Mark(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write(self, step: str, mark: Mark) -> None:
        """Put the mark of a step on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._mark(step), asdict(mark))

    def clear(self, step: str, folder: Path) -> None:
        """Remove what an earlier run of this step wrote, if the folder lies in ours and the step did begin."""
        mine = folder.resolve().is_relative_to(self.output_dir.resolve()) and folder.resolve() != \
            self.output_dir.resolve()
        if mine and folder.is_dir() and self.read(step) is not None:
            shutil.rmtree(folder)

    def _mark(self, step: str) -> Path:
        return self.folder / f"{step}.json"


def verb_file(values: Mapping[str, Any]) -> str:
    """Return the keys as YAML, one on each line, so that a line number names a key."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
