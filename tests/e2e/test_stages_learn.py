"""Every registered stage learns with every method on a tiny model; the matrix is generated from the registry."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.stages.base import STAGES
from tests.online import stage_keys
from tests.reading import losses, metrics, read_json
from tests.tiny import CHATML, save_tiny

METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full", "learning_rate": 1e-2, "num_train_epochs": 60},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "freeze_extra_modules": "norm",
               "learning_rate": 1e-2, "num_train_epochs": 90},
    "lora": {"finetuning_type": "lora", "lora_rank": 32, "learning_rate": 1e-2, "num_train_epochs": 120},
    "qlora": {"finetuning_type": "lora", "lora_rank": 32, "quantization_bit": 4, "learning_rate": 1e-2,
              "num_train_epochs": 120},
}
PACE: dict[str, dict[str, Any]] = {
    "rm": {"learning_rate": 2e-3, "num_train_epochs": 40}, "dpo": {"num_train_epochs": 30},
    "kto": {"num_train_epochs": 30, "per_device_train_batch_size": 16},
    "ppo": {"learning_rate": 4e-3, "num_train_epochs": 50, "ppo_kl_coef": 0.01},
    "grpo": {"learning_rate": 4e-3, "num_train_epochs": 30, "grpo_beta": 0.01}}
"""What a stage needs other than the method's own: one decision an answer is learnt in fewer, smaller steps."""
DATA = {"pt": "prose", "sft": "chat", "rm": "pairs", "dpo": "pairs", "kto": "verdicts", "ppo": "chat", "grpo": "chat"}


def memorises(out: Path) -> None:
    """Eight dialogues (or their prose) are memorised to a loss under 0.1."""
    trail = losses(out)
    assert trail[0] > 3.0 and min(trail[-5:]) < 0.1, trail[::10]


def ranks(out: Path) -> None:
    """Every pair is ranked as it is labelled, with a loss under 0.1; it starts near log 2."""
    trail, log = losses(out), metrics(out)
    assert trail[0] > 0.3 and min(trail[-5:]) < 0.1, trail[::10]
    assert log[-1]["accuracy"] == 1.0 and log[-1]["margin"] > log[0]["margin"] + 1


def prefers(out: Path) -> None:
    """The loss falls and the chosen answers draw ahead of the rejected ones; both start where the reference is."""
    trail, log = losses(out), metrics(out)
    assert abs(log[0]["rewards/margins"]) < 1e-3
    assert trail[-1] < 0.8 * trail[0] and log[-1]["rewards/margins"] > 1, (trail[::10], log[-1])


def earns(out: Path) -> None:
    """Answers come to the bandit's optimum, letters alone, from where a random model begins; the KL is told."""
    log = metrics(out)
    assert log[0]["reward"] < 0.5 and abs(log[0]["kl"]) < 1e-3, log[0]
    assert sum(row["reward"] for row in log[-4:]) / 4 > 0.95, [row["reward"] for row in log]
    assert log[-1]["kl"] > 1 and (out / "rollouts.jsonl").exists()


SUCCESS = {"pt": memorises, "sft": memorises, "rm": ranks, "dpo": prefers, "kto": prefers, "ppo": earns,
           "grpo": earns}


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with large weights: its frozen head can tell words apart, as a trained one can."""
    return save_tiny(tmp_path_factory.mktemp("wide"), "llama", CHATML, hidden_size=64, initializer_range=0.2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", list(STAGES))
def test_stage_learns(stage: str, method: str, world: Path, wide_base: Path, tmp_path: Path,
                      danlu: Callable[..., int]) -> None:
    """The stage reaches its own mark; results and picture are written."""
    out = tmp_path / "out"
    config = {
        "model_name_or_path": str(wide_base), "stage": stage, "do_train": True, "dataset": DATA[stage],
        "dataset_dir": str(world), "output_dir": str(out), "per_device_train_batch_size": 8, "logging_steps": 1,
        "lr_scheduler_type": "constant", "packing": False, "plot_loss": True, "save_strategy": "no",
        **METHODS[method], **stage_keys(stage, world), **PACE.get(stage, {})}
    assert danlu("train", config) == 0
    SUCCESS[stage](out)
    results = read_json(out / "train_results.json")
    assert math.isfinite(results["train_loss"]) and results["train_steps_per_second"] > 0
    assert (out / "training_loss.png").read_bytes().startswith(b"\x89PNG")
