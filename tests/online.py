"""What the test matrices give to stages that train on answers of their own."""

from pathlib import Path
from typing import Any

from danlu.core.schema import sampling_stages


def stage_keys(stage: str, world: Path) -> dict[str, Any]:
    """Return the keys that a stage needs beside those of every run: a reward, and short answers."""
    if stage not in sampling_stages():
        return {}
    return {"reward_model_type": "function", "reward_model": f"{world}/reward.py:letters", "max_new_tokens": 2}
