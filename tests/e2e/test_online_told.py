"""Runs on own answers tell the truth: what a step logs, what a changed key means on resuming, predictions, scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.core.schema import sampling_stages
from tests.online import stage_keys
from tests.reading import metrics, read_json


@pytest.fixture
def run(tiny_base: Path, world: Path, tmp_path: Path, danlu: Callable[..., int]) -> Callable[..., tuple[int, Path]]:
    """Train a stage for two steps of four prompts, unless the keys say otherwise; return exit code and folder."""
    def train(stage: str, name: str = "out", **keys: Any) -> tuple[int, Path]:
        out = tmp_path / name
        code = danlu("train", {
            "model_name_or_path": str(tiny_base), "stage": stage, "finetuning_type": "lora", "dataset": "chat",
            "dataset_dir": str(world), "output_dir": str(out), "per_device_train_batch_size": 4, "logging_steps": 1,
            "max_steps": 2, **stage_keys(stage, world), **keys})
        return code, out
    return train


@pytest.mark.parametrize("stage", sampling_stages())
def test_the_policy_predicts(stage: str, run: Callable[..., tuple[int, Path]]) -> None:
    """do_predict answers the evaluation set with the trained policy."""
    code, out = run(stage, do_train=True, do_predict=True, eval_dataset="chat")
    rows = (out / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert code == 0 and len(rows) == 8


def test_all_answers_cut_and_masked(run: Callable[..., tuple[int, Path]]) -> None:
    """Two tokens are never enough, but for an end token by chance, which this seed does not draw: nothing carries loss,
    the weights stay, and the log still says what was sampled."""
    code, out = run("grpo", mask_truncated=True, save_steps=1, eval_dataset="chat", do_train=True, do_eval=True, seed=1)
    assert code == 0
    log = metrics(out)
    assert [row["truncated"] for row in log] == [1.0, 1.0] and log[0]["length"] == 2.0
    assert all(row["reward"] > 0 for row in log)
    first, last = ((out / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes() for step in (1, 2))
    assert first == last
    assert read_json(out / "eval_results.json")["eval_truncated"] == 1.0


def test_a_small_last_batch_is_told_as_it_is(run: Callable[..., tuple[int, Path]]) -> None:
    """Six batches of one prompt fill the first step, the last two prompts a third of the second: what is told of it are
    the numbers of its answers, not diluted by updates without any."""
    code, out = run("ppo", per_device_train_batch_size=1, ppo_buffer_size=6, ppo_epochs=1, ppo_kl_controller="fixed")
    log = metrics(out)
    assert code == 0
    assert [row["kl_coef"] for row in log] == pytest.approx([0.2, 0.2])
    assert [row["length"] for row in log] == [2.0, 2.0]


def test_another_algorithm_does_not_go_on_by_itself(run: Callable[..., tuple[int, Path]],
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """Changed keys of stage or sampling are refused with their names; what cannot change a number is not."""
    assert run("ppo", max_steps=1, save_steps=1)[0] == 0
    capsys.readouterr()
    assert run("ppo", ppo_target=3.0, max_new_tokens=3)[0] == 2
    said = capsys.readouterr().err
    assert "ppo_target 6.0 -> 3.0" in said and "max_new_tokens 2 -> 3" in said
    assert run("ppo", rollout_log_samples=1)[0] == 0


@pytest.mark.parametrize("keys", [
    [], ["reward_model_type=function", "reward_model=a.py:f,b.py:f"]])
def test_mistakes_in_rewards_are_told(keys: list[str], tiny_base: Path, world: Path, danlu: Callable[..., int],
                                      capsys: pytest.CaptureFixture[str]) -> None:
    """`danlu eval task=reward` says which key is wrong, before it loads a model."""
    code = danlu("eval", ["task=reward", f"model_name_or_path={tiny_base}", f"dataset={world / 'chat.json'}",
                          "template=chatml", *keys])
    assert code == 2 and "reward_model" in capsys.readouterr().err


def test_eval_scores_sampled_answers(tiny_base: Path, world: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """The mean reward is that of the rows written; a model is at KL 0 of itself."""
    assert danlu("eval", [
        "task=reward", f"model_name_or_path={tiny_base}", f"dataset={world / 'chat.json'}", "template=chatml",
        "reward_model_type=function", f"reward_model={world}/reward.py:letters", "max_new_tokens=4", "temperature=1",
        "top_p=1", "top_k=0", f"kl_reference={tiny_base}", f"save_dir={tmp_path}"]) == 0
    lines = (tmp_path / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"] for line in lines]
    results = read_json(tmp_path / "eval_results.json")
    assert results["reward"] == pytest.approx(sum(rewards) / 8) and len(set(rewards)) > 1
    assert abs(results["kl"]) < 1e-4
