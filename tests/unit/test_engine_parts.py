"""Optimisers, schedules, plan, plots, trackers: every name that the configuration offers does what it says."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from danlu.core.errors import CapabilityError, ConfigError
from danlu.engine.config import EngineConfig, Optimizer, Schedule
from danlu.engine.optimizers import default_groups, make_optimizer, offered
from danlu.engine.plan import Plan
from danlu.engine.plots import drawn, plot_losses, smoothed
from danlu.engine.schedules import Schedule as RunningSchedule
from danlu.engine.trackers import settings as tracker_settings
from tests.toy_stage import ToyData, losses, make_config, make_stage, train

PLATEAU = {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_learns(tmp_path: Path, name: str) -> None:
    """Lion moves by its learning rate in every coordinate, RMSprop and Adagrad by about it: small rates suffice."""
    rate = {"sgd": 0.5, "adagrad": 0.1}.get(name, 0.02)
    result, _ = train(tmp_path, optim=name, learning_rate=rate, num_train_epochs=8, logging_steps=6)
    values = losses(result)
    assert values[-1] < values[0] - 0.5


def test_offered_names_are_those_of_the_configuration() -> None:
    assert set(offered()) == set(get_args(Optimizer))


def test_optimizer_settings(tmp_path: Path) -> None:
    policy = make_stage().models.policy
    config = make_config(tmp_path, optim="sgd", optim_args="momentum=0.9, nesterov=true", weight_decay=0.1)
    optimizer = make_optimizer(default_groups(policy, config), config)
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["nesterov"] is True
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(p.ndim == 2 for p in optimizer.param_groups[0]["params"])
    wrong = make_config(tmp_path, optim="sgd", optim_args="moment=0.9")
    with pytest.raises(ConfigError, match="moment"):
        make_optimizer(default_groups(policy, wrong), wrong)
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(default_groups(policy.requires_grad_(False), config), config)


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_runs(tmp_path: Path, name: str) -> None:
    keys: dict[str, object] = {"eval_strategy": "steps", "eval_steps": 3} if name in PLATEAU else {}
    result, _ = train(tmp_path, lr_scheduler_type=name, warmup_ratio=0.25, eval_data=ToyData(4, seed=2), **keys)
    rates = [row["learning_rate"] for row in result.history if "loss" in row]
    assert all(0 <= rate <= 0.05 + 1e-12 for rate in rates)
    if name in ("linear", "cosine", "polynomial", "constant_with_warmup", "cosine_with_min_lr"):
        assert rates[0] == pytest.approx(0.05 / 3)  # three steps of warm-up: 1/3 after the first
    if name in ("linear", "cosine"):
        assert rates[-1] == pytest.approx(0, abs=1e-9)


def _rates(config: EngineConfig, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = RunningSchedule(optimizer, config, steps)
    seen = []
    for _ in range(steps):
        seen.append(schedule.learning_rate)
        optimizer.step()
        schedule.after_step()
    return seen


def test_cosine_with_a_floor(tmp_path: Path) -> None:
    """min_lr 0.01 of 0.1 over 10 steps without warm-up: 0.01 + 0.09 (1 + cos(pi t / 10)) / 2."""
    config = make_config(tmp_path, learning_rate=0.1, lr_scheduler_type="cosine_with_min_lr",
                         lr_scheduler_kwargs={"min_lr": 0.01})
    expected = [0.01 + 0.09 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert _rates(config, 10) == pytest.approx(expected)


def test_wrong_schedule_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_cycle"):
        _rates(make_config(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycle": 1}), 10)


def test_plan_counts_steps(tmp_path: Path) -> None:
    """103 examples, 2 x 4 x 3 = 24 a step: 5 steps an epoch; 2.5 epochs = 12.5, so 13 steps; 0.1 of 13 is 2."""
    config = make_config(tmp_path, gradient_accumulation_steps=4, num_train_epochs=2.5, save_strategy="steps",
                         save_steps=0.1, eval_strategy="epoch", logging_steps=7)
    plan = Plan.of(config, 103, world_size=3)
    assert (plan.steps_per_epoch, plan.total_steps, plan.global_batch) == (5, 13, 24)
    assert [step for step in range(1, 14) if plan.is_save(step)] == [2, 4, 6, 8, 10, 12, 13]
    assert [step for step in range(1, 14) if plan.is_eval(step)] == [5, 10]
    assert [step for step in range(1, 14) if plan.is_log(step)] == [7, 13]
    assert plan.epoch(5) == 1.0
    dropping = make_config(tmp_path, dataloader_drop_last=True)
    assert Plan.of(dropping, 103).steps_per_epoch == 25
    assert Plan.of(make_config(tmp_path, max_steps=3), 103).total_steps == 3
    with pytest.raises(ConfigError, match="leaves nothing"):
        Plan.of(dropping, 3)


def test_best_model_needs_matching_steps(tmp_path: Path) -> None:
    config = make_config(tmp_path, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=6,
                         load_best_model_at_end=True)
    with pytest.raises(ConfigError, match="multiple"):
        Plan.of(config, 100)


def test_moving_average_by_hand() -> None:
    """w = 0.5 on 2, 4, 6: s = 1, 2.5, 4.25 over 0.5, 0.75, 0.875 = 2, 10/3, 34/7."""
    assert smoothed([2, 4, 6], 0.5) == pytest.approx([2, 10 / 3, 34 / 7])


def test_tensorboard_is_written(tmp_path: Path) -> None:
    train(tmp_path, report_to=("tensorboard",), max_steps=2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((tmp_path / "runs").rglob("events*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2]


def test_wandb_without_key_or_network_stays_offline(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy",
                 "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    config = make_config(tmp_path, report_to=("wandb",), run_name="mine")
    expected = {"wandb": {"name": "mine", "dir": str(tmp_path), "mode": "offline"}}
    assert tracker_settings(config, ["wandb"], tmp_path) == expected
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert tracker_settings(config, ["wandb"], tmp_path) == expected
    said = capsys.readouterr().err
    assert "wandb: no API key found" in said
    assert "wandb: 127.0.0.1 does not answer" in said
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "mode" not in tracker_settings(config, ["wandb"], tmp_path)["wandb"]


def test_missing_and_unknown_trackers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match='unknown tracker "tensorbord"; did you mean "tensorboard"'):
        train(tmp_path, report_to=("tensorbord",))
    with pytest.raises(CapabilityError, match="mlflow is not installed"):
        train(tmp_path, report_to=("mlflow",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="fp16 needs a GPU"):
        train(tmp_path, fp16=True)


def test_bfloat16_keeps_weights_in_float32(tmp_path: Path) -> None:
    result, stage = train(tmp_path, bf16=True, num_train_epochs=10)
    assert {p.dtype for p in stage.models.policy.parameters()} == {torch.float32}
    exact, _ = train(tmp_path / "exact", num_train_epochs=10)
    assert losses(result) != losses(exact)
    assert losses(result)[-1] == pytest.approx(losses(exact)[-1], abs=0.1)


def test_every_measure_has_a_picture_under_a_safe_name(tmp_path: Path) -> None:
    """Numbers that are missing or not finite leave gaps; what is no curve of interest, or never a number, has none."""
    history = [{"step": 1, "loss": 2.0, "rewards/accuracies": 0.5, "kl": None, "learning_rate": 0.1, "epoch": 0.5},
               {"step": 2, "loss": 1.0, "rewards/accuracies": 0.7, "kl": 3.0, "reward": 0.1, "reward_std": 0.2},
               {"step": 2, "eval_loss": 1.5, "eval_rewards/margins": 0.2, "entropy": None, "length": float("inf")}]
    assert drawn(history) == ["loss", "rewards/accuracies", "kl", "reward", "eval_loss", "eval_rewards/margins"]
    plot_losses(history, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "training_eval_loss.png", "training_eval_rewards_margins.png", "training_kl.png", "training_loss.png",
        "training_reward.png", "training_rewards_accuracies.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
