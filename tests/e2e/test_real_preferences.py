"""Preference files and questions as others publish them: each trains the stage it is for, and prefers or earns more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reading import metrics
from tests.tiny import CHATML, save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with room for dialogues."""
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", CHATML, max_position_embeddings=1024, hidden_size=64,
                     initializer_range=0.2)


@pytest.mark.parametrize(("stage", "file", "rows", "metric"), [
    ("dpo", "Firefly/data/dummy_dpo.jsonl", 16, "rewards/margins"),
    ("rm", "Firefly/data/dummy_dpo.jsonl", 16, "margin"),
    ("dpo", "MedicalGPT/data/reward/toolcall_dpo_zh_demo.jsonl", 11, "rewards/margins"),
    ("rm", "MedicalGPT/data/reward/toolcall_dpo_zh_demo.jsonl", 11, "margin")])
def test_pairs(stage: str, file: str, rows: int, metric: str, base: Path, shared: Path, tmp_path: Path,
               danlu: Callable[..., int]) -> None:
    """Pairs with whole dialogues as answers (the layout of HH), and pairs with tools: the chosen answers draw ahead."""
    config: dict[str, Any] = {
        "model_name_or_path": str(base), "stage": stage, "finetuning_type": "lora", "template": "qwen",
        "dataset": str(shared / "data" / file), "output_dir": str(tmp_path / "out"), "cutoff_len": 1000,
        "on_bad_row": "skip", "learning_rate": 1e-2,
        "per_device_train_batch_size": rows, "max_steps": 8, "logging_steps": 1, "save_strategy": "no"}
    assert danlu("train", config) == 0
    log = metrics(tmp_path / "out")
    assert log[-1][metric] > log[0][metric] + 0.05, [row[metric] for row in log]


def test_questions_with_answers_for_grpo(base: Path, shared: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """Medical questions with reference answers: the rule reads the column `answer`; every prompt gets its group."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("- exact: answer\n- regex: '^[a-m ]'\n", encoding="utf-8")
    config: dict[str, Any] = {
        "model_name_or_path": str(base), "stage": "grpo", "finetuning_type": "lora",
        "dataset": str(shared / "data" / "MedicalGPT/data/grpo/sample.jsonl"), "output_dir": str(tmp_path / "out"),
        "reward_model_type": "rules", "reward_model": str(rules), "num_generations": 8, "max_new_tokens": 2,
        "per_device_train_batch_size": 8, "max_steps": 30, "learning_rate": 1e-2, "logging_steps": 1,
        "grpo_beta": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no"}
    assert danlu("train", config) == 0
    log = metrics(tmp_path / "out")
    assert all(set(row) >= {"reward", "length", "idle_groups"} for row in log)
    first, last = (sum(row["reward"] for row in part) / 3 for part in (log[:3], log[-3:]))
    assert last > first + 0.1, [row["reward"] for row in log]
