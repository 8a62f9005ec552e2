"""Fixtures every test may use: tiny models, the shared real data, and one thread each so that two cores suffice."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
DIALOGUES = [
    ("what colour is the sky", "blue"), ("what colour is the cat", "warm"), ("天空 是 什么 颜色", "蓝色"),
    ("你好", "你好 请"), ("the sun is", "warm and blue"), ("what is rain", "wet"), ("请 回答 问题", "猫 是 蓝色"),
    ("the cat sat on", "a mat"),
]

REWARD = '''"""A known bandit: the share of an answer's characters that are small Latin letters; the optimum is 1."""


def letters(completions: list[str], **columns: object) -> list[float]:
    return [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]
'''


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden-update` rewrites golden files; `make golden` passes it."""
    parser.addoption("--golden-update", action="store_true", help="write the golden files anew")


@pytest.fixture(autouse=True)
def fresh_notices() -> None:
    """Let each test hear every notice, whatever an earlier test in this process was told."""
    from danlu.core.console import forget_notices

    forget_notices()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real public data; skips with a counted reason when it is absent."""
    folder = Path(os.environ.get("DANLU_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        if os.environ.get("DANLU_REQUIRE_SHARED") == "1":
            pytest.fail(f"DANLU_REQUIRE_SHARED=1 but {folder}/data is absent")
        pytest.skip("shared data absent (set DANLU_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a ChatML chat template, saved as a user would have it."""
    from tests.tiny import CHATML, save_tiny

    return save_tiny(tmp_path_factory.mktemp("base"), "llama", CHATML)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry of tiny data sets: dialogues, the same words as prose, as pairs, as verdicts."""
    folder = tmp_path_factory.mktemp("world")
    rows = [{"instruction": q, "input": "", "output": a} for q, a in DIALOGUES]
    (folder / "chat.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    prose = [{"text": f"{number} {q} {a}"} for number, (q, a) in enumerate(DIALOGUES)]
    (folder / "prose.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in prose), "utf-8")
    pairs = [{"instruction": q, "chosen": a, "rejected": DIALOGUES[i - 3][1]} for i, (q, a) in enumerate(DIALOGUES)]
    (folder / "pairs.json").write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    verdicts = [{"instruction": row["instruction"], "output": row[kind], "kto_tag": kind == "chosen"}
                for row in pairs for kind in ("chosen", "rejected")]
    (folder / "verdicts.json").write_text(json.dumps(verdicts, ensure_ascii=False), encoding="utf-8")
    pair_columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    info = {"chat": {"file_name": "chat.json"}, "prose": {"file_name": "prose.jsonl", "columns": {"prompt": "text"}},
            "pairs": {"file_name": "pairs.json", "ranking": True, "columns": pair_columns},
            "verdicts": {"file_name": "verdicts.json", "columns": {
                "prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def danlu(tmp_path: Path) -> Callable[..., int]:
    """Run a verb in this process: `danlu("train", {"stage": "sft", ...}, "key=value")`; returns the exit code."""

    from danlu.cli.main import main

    def run(verb: str, config: dict[str, Any] | list[str], *overrides: str) -> int:
        if isinstance(config, list):
            return main([verb, *config, *overrides])
        path = tmp_path / f"{verb}.yaml"
        path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return main([verb, str(path), *overrides])

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count skipped tests by reason, so that a silent hole in the proof is seen."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count} test(s): {reason}")
