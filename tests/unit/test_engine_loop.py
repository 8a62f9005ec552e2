"""The loop: what a step computes, and that nothing about its layout changes the result."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from danlu.core.errors import ConfigError
from danlu.core.run_dir import RunDir
from danlu.engine.faults import NonFiniteError
from danlu.engine.loop import Engine
from tests.toy_stage import ToyData, ToySaver, ToyStage, losses, make_config, make_stage, train, weights


def test_first_steps_equal_a_loop_written_by_hand(tmp_path: Path) -> None:
    """Two AdamW steps over all examples at once: mean over all terms, clipped to 1, linear decay from 0.05."""
    data = ToyData(4)
    result, trained = train(tmp_path, data=data, max_steps=2, optim="adamw_torch", disable_shuffling=True)
    stage = make_stage()
    model = stage.models.policy
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    expected = []
    for rate in (0.05, 0.025):
        micro = stage.collate(data.examples)
        loss = stage.loss(micro).total / stage.count(micro)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(result) == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(weights(trained), weights(stage), atol=1e-6)


@pytest.mark.parametrize(("micro", "accumulation"), [(1, 8), (2, 4), (4, 2), (3, 3)])
def test_accumulation_does_not_change_the_run(tmp_path: Path, micro: int, accumulation: int) -> None:
    reference, one = train(tmp_path / "a", per_device_train_batch_size=micro * accumulation,
                           gradient_accumulation_steps=1)
    result, other = train(tmp_path / "b", per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    assert losses(result) == pytest.approx(losses(reference), abs=1e-6)
    assert torch.allclose(weights(one), weights(other), atol=1e-5)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_first_step_takes_the_most_tokens_of_its_epoch(tmp_path: Path, fixed: bool) -> None:
    """Five batches of four, and three rows left over; in the order of the file the fullest comes where it stands."""
    stage, tokens = make_stage(), list[int]()
    stage.prepare = lambda batch: tokens.append(sum(len(one.input_ids) for one in batch)) or iter([batch])  # type: ignore
    train(tmp_path, stage=stage, num_train_epochs=1, disable_shuffling=fixed)
    assert len(tokens) == 6 and (tokens[0] == max(tokens)) is not fixed


def test_loss_falls_on_a_learnable_language(tmp_path: Path) -> None:
    """The toy data follows x + 1 or x + 2: the best bigram model has a loss near log 2 = 0.69 (log 17 = 2.83)."""
    result, _ = train(tmp_path, num_train_epochs=60, data=ToyData(40))
    values = losses(result)
    assert values[0] > 2.5
    assert sum(values[-10:]) / 10 < 0.85


def test_logs_and_results_are_written(tmp_path: Path) -> None:
    """23 examples, 4 a step: 6 steps an epoch, the last one with 3 examples; 2 epochs = 12 steps."""
    result, _ = train(tmp_path, plot_loss=True, eval_data=ToyData(5, seed=1), eval_strategy="epoch")
    rows = [json.loads(line) for line in (tmp_path / "trainer_log.jsonl").read_text().splitlines()]
    steps = [row["current_steps"] for row in rows if "loss" in row]
    assert steps == list(range(1, 13))
    assert {"total_steps", "lr", "epoch", "percentage", "elapsed_time", "remaining_time", "grad_norm",
            "tokens_per_second"} <= rows[0].keys()
    assert rows[0]["half"] == pytest.approx(rows[0]["loss"] / 2, rel=1e-5)
    assert rows[-1]["percentage"] == 100
    everything = json.loads((tmp_path / "all_results.json").read_text())
    assert everything["epoch"] == 2.0
    assert everything["train_loss"] == pytest.approx(sum(losses(result)) / 12)
    # 6 x (8 x 17 head + 17 bias + 16 norm) parameters outside the embedding, for every token of two epochs
    tokens = 2 * sum(len(e.input_ids) for e in ToyData().examples)
    assert everything["total_flos"] == 6 * (8 * 17 + 17 + 16) * tokens
    assert (tmp_path / "training_loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "training_eval_loss.png").exists()
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 12
    assert len(state["log_history"]) == 14


def test_evaluation_is_the_global_token_mean(tmp_path: Path) -> None:
    stage, data, other = make_stage(), ToyData(7, seed=3), ToyData(3, seed=4)
    run = RunDir.create(tmp_path)
    engine = Engine(make_config(tmp_path, per_device_eval_batch_size=2), run, ToySaver())
    metrics = engine.evaluate(stage, {"left": data, "right": other})
    with torch.no_grad():
        parts = [(stage.collate(one.examples)) for one in (data, other)]
        totals = [float(stage.loss(p).total) for p in parts]
        counts = [float(stage.count(p)) for p in parts]
    assert metrics["eval_left_loss"] == pytest.approx(totals[0] / counts[0], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(totals) / sum(counts), rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_loss"] == metrics["eval_loss"]


def test_log_is_json_without_infinity(tmp_path: Path) -> None:
    """A step size of 1e5 makes losses over 700 nats, whose perplexity no float holds."""
    train(tmp_path, optim="sgd", learning_rate=1e5, max_grad_norm=0.0, eval_strategy="steps", eval_steps=3, max_steps=3,
          eval_data=ToyData(4), lr_scheduler_type="constant")
    text = (tmp_path / "trainer_log.jsonl").read_text() + (tmp_path / "trainer_state.json").read_text()
    assert "Infinity" not in text
    assert '"eval_perplexity": null' in text


def test_nan_names_the_row_and_keeps_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 5; rows: toy.jsonl:18\n") as caught:
        train(tmp_path, data=ToyData(bad=17), disable_shuffling=True, save_strategy="steps", save_steps=2)
    assert "Checkpoints written before" in str(caught.value)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_early_stopping_and_best_checkpoint(tmp_path: Path) -> None:
    """A learning rate that wrecks the model: the first evaluation stays the best, two more without gain stop."""
    result, stage = train(
        tmp_path, eval_data=ToyData(6, seed=9), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, save_total_limit=1, early_stopping_steps=2, load_best_model_at_end=True, learning_rate=50.0,
        max_grad_norm=0.0, optim="sgd", lr_scheduler_type="constant")
    evaluated = [row["eval_loss"] for row in result.history if "eval_loss" in row]
    best = min(range(len(evaluated)), key=evaluated.__getitem__)
    assert result.stopped_early
    assert len(evaluated) == best + 3
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == f"checkpoint-{best + 1}"
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best + 1}", f"checkpoint-{best + 3}"}
    saved = load_file(result.best_checkpoint / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in stage.models.policy.state_dict().items())


def test_strategies_without_evaluation_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        train(tmp_path, eval_strategy="epoch")
    with pytest.raises(ValidationError, match="follows evaluations"):
        train(tmp_path, lr_scheduler_type="reduce_lr_on_plateau")
    with pytest.raises(ConfigError, match="empty"):
        train(tmp_path, data=ToyData(0))


def test_gradient_norm_is_that_of_the_whole_step(tmp_path: Path) -> None:
    data = ToyData(4)
    result, _ = train(tmp_path, data=data, max_steps=1, max_grad_norm=0.0)
    stage = make_stage()
    micro = stage.collate(data.examples)
    (stage.loss(micro).total / stage.count(micro)).backward()
    norm = torch.cat([p.grad.flatten() for p in stage.models.policy.parameters()]).norm()
    assert result.history[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


class Reads(TorchFunctionMode):
    """Log each loss and each number that Python reads from a tensor; what is counted before a step lies on the CPU."""

    def __init__(self, stage: ToyStage) -> None:
        super().__init__()
        self.log: list[str] = []
        loss, stage.loss = stage.loss, lambda micro: self.log.append("loss") or loss(micro)  # type: ignore

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"}:
            self.log.append("read")
        return func(*args, **(kwargs or {}))


def test_an_update_reads_its_numbers_from_the_device_at_once(tmp_path: Path) -> None:
    """Between the last loss of a step and the change of the weights: norm, loss and metric in one transfer."""
    stage = make_stage()
    reads = Reads(stage)
    before, log = torch.optim.SGD.step, reads.log
    with pytest.MonkeyPatch.context() as patch, reads:
        patch.setattr(torch.optim.SGD, "step", lambda self, *args: log.append("update") or before(self, *args))
        train(tmp_path, stage=stage, max_steps=3, optim="sgd")
    updates = " ".join(log).split("update")[:-1]
    assert len(updates) == 3
    assert all(one.rpartition("loss")[2].split() == ["read"] for one in updates)
