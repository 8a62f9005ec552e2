"""What must not change an alignment run: accumulation, micro-batches, being stopped, the evaluation batch."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.invariant.test_training_invariances import assert_close, train, weights
from tests.reading import losses, metrics, read_json

STAGES: dict[str, dict[str, Any]] = {
    "rm": {"stage": "rm", "dataset": "pairs", "learning_rate": 1e-3},
    "dpo": {"stage": "dpo", "dataset": "pairs", "pref_loss": "kto_pair", "pref_bco_weight": 0.5, "pref_ftx": 0.1},
    "kto": {"stage": "kto", "dataset": "verdicts", "pref_beta": 0.5},
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"}, "lora": {"finetuning_type": "lora", "lora_dropout": 0.1}}


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_does_not_change_the_run(stage: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """8x1 and 2x4 see the same eight examples a step; baselines are taken over all eight in both."""
    keys = {**STAGES[stage], "finetuning_type": "full", "val_size": 4, "do_eval": True, "max_steps": 4}
    whole = train(tiny_base, world, tmp_path / "whole", **keys, per_device_train_batch_size=4,
                  per_device_eval_batch_size=4)
    parts = train(tiny_base, world, tmp_path / "parts", **keys, per_device_train_batch_size=1,
                  gradient_accumulation_steps=4, per_device_eval_batch_size=3)
    assert_close(whole, parts, 5e-4)
    one, other = (read_json(out / "eval_results.json") for out in (whole, parts))
    assert {k: v for k, v in one.items() if "_per_" not in k and "runtime" not in k} == pytest.approx(
        {k: v for k, v in other.items() if "_per_" not in k and "runtime" not in k}, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_is_bit_identical(stage: str, method: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Stopped after step 3 and started again: the same losses, metrics and bits; value head and BCO's mean included."""
    keys = {**STAGES[stage], **METHODS[method], "save_steps": 3}
    never = train(tiny_base, world, tmp_path / "never", **keys)
    again = tmp_path / "again"
    shutil.copytree(never, again, ignore=shutil.ignore_patterns("checkpoint-6", "*.safetensors"))
    shutil.copytree(never / "checkpoint-3", again / "checkpoint-3", dirs_exist_ok=True)
    train(tiny_base, world, again, **keys)
    assert losses(again)[-3:] == losses(never)[-3:]
    timeless = [{k: v for k, v in row.items() if k in ("loss", "grad_norm") or "/" in k} for row in metrics(never)]
    assert timeless == [{k: v for k, v in row.items() if k in timeless[0]} for row in metrics(again)]
    one, other = weights(never), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    if (never / "value_head.safetensors").exists():
        heads = [load_file(out / "value_head.safetensors") for out in (never, again)]
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_reward_model_scores_as_it_trained(method: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Evaluated after training and again from its folder, head included, a reward model tells the same numbers."""
    keys = {**STAGES["rm"], **METHODS[method], "val_size": 4, "do_eval": True}
    out = train(tiny_base, world, tmp_path / "out", **keys)
    place = {"adapter_name_or_path": str(out)} if method == "lora" else {"model_name_or_path": str(out)}
    again = train(tiny_base, world, tmp_path / "again", **{**keys, "do_train": False}, **place)
    one, other = (read_json(folder / "eval_results.json") for folder in (out, again))
    for name in ("eval_loss", "eval_accuracy", "eval_margin", "eval_rewards/chosen"):
        assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_stays_where_training_began(method: str, tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Going on from a trained model or adapter, the first margin is 0: the reference is that start, not the base."""
    keys = {**METHODS[method], "lora_dropout": 0.0}
    first = train(tiny_base, world, tmp_path / "first", **keys)
    place = {"adapter_name_or_path": str(first)} if method == "lora" else {"model_name_or_path": str(first)}
    out = train(tiny_base, world, tmp_path / "out", stage="dpo", dataset="pairs", **keys, **place)
    row = metrics(out)
    assert row[0]["loss"] == pytest.approx(0.693147, abs=1e-4) and abs(row[0]["rewards/margins"]) < 1e-4
    assert abs(row[-1]["rewards/margins"]) > 1e-3
