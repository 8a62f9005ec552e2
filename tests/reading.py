"""Read back what a run wrote."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Parse one of the result files a run writes."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def losses(output_dir: Path) -> list[float]:
    """Return the training losses logged in `trainer_log.jsonl`, in order."""
    lines = (output_dir / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row.get("loss") is not None]


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of `trainer_log.jsonl` that hold a training loss, in order."""
    lines = (output_dir / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("loss") is not None]
