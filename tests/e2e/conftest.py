"""What end-to-end tests share: a way to run danlu as a user does, and eight dialogues a tiny model can learn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli.main import main

DIALOGUES = [
    ("what colour is the sky", "blue"), ("what colour is the cat", "warm"), ("天空 是 什么 颜色", "蓝色"),
    ("你好", "你好 请"), ("the sun is", "warm and blue"), ("what is rain", "wet"), ("请 回答 问题", "猫 是 蓝色"),
    ("the cat sat on", "a mat"),
]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry of two tiny data sets: dialogues in alpaca form, and the same words as prose."""
    folder = tmp_path_factory.mktemp("world")
    rows = [{"instruction": q, "input": "", "output": a} for q, a in DIALOGUES]
    (folder / "chat.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    prose = [{"text": f"{q} {a}"} for q, a in DIALOGUES]
    (folder / "prose.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in prose), "utf-8")
    info = {"chat": {"file_name": "chat.json"}, "prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def danlu(tmp_path: Path) -> Callable[..., int]:
    """Run a verb in this process: `danlu("train", {"stage": "sft", ...}, "key=value")`; returns the exit code."""

    def run(verb: str, config: dict[str, Any] | list[str], *overrides: str) -> int:
        if isinstance(config, list):
            return main([verb, *config, *overrides])
        path = tmp_path / f"{verb}.yaml"
        path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return main([verb, str(path), *overrides])

    return run


def read_json(path: Path) -> dict[str, Any]:
    """Parse one of the result files a run writes."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def losses(output_dir: Path) -> list[float]:
    """Return the training losses logged in `trainer_log.jsonl`, in order."""
    lines = (output_dir / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row.get("loss") is not None]
