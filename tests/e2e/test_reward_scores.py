"""A reward model's scores on held-out answers: by hand, while training, as predictions, by `danlu eval`, exported."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.evaluation.judged import Judged, measure, reliability
from tests.reading import read_json
from tests.tiny import CHATML, save_tiny

NUMBERS = ("accuracy", "margin", "ece", "rewards/chosen", "rewards/rejected")


def judged(*rows: tuple[tuple[float, ...], int]) -> list[Judged]:
    return [Judged(rewards, good, f"file:{row}") for row, (rewards, good) in enumerate(rows, 1)]


def test_pairs_and_rankings_by_hand() -> None:
    """A right pair led by ln 3, and three answers 2, 0, 1: of their pairs two are right (+2, +1), one is wrong (-1).

    accuracy = (1 + 2/3) / 2, margin = (ln 3 + 2/3) / 2; the claims 0.75 (bin 5), 0.731 twice (bin 4), 0.881 (bin 7):
    ECE = (|1 - 0.75| + |1/3 - 2/3 * 0.731| + 1/3 |1 - 0.881|) / 2
    """
    lead = math.log(3) + 1e-9
    rows = judged(((lead, 0.0), 1), ((2.0, 0.0, 1.0), 1))
    sure = {d: 1 / (1 + math.exp(-d)) for d in (lead, 1.0, 2.0)}
    ece = (1 - sure[lead] + abs(1 / 3 - 2 / 3 * sure[1.0]) + (1 - sure[2.0]) / 3) / 2
    assert measure(rows) == pytest.approx({
        "accuracy": 5 / 6, "margin": (lead + 2 / 3) / 2, "ece": ece, "rewards/chosen": (lead + 2) / 2,
        "rewards/rejected": 0.25})
    assert ece == pytest.approx(0.2219, abs=1e-4)
    table = reliability(rows)
    assert [(one["from"], one["to"]) for one in table] == [
        (pytest.approx(low), pytest.approx(high)) for low, high in ((0.7, 0.75), (0.75, 0.8), (0.85, 0.9))]
    assert table[0] | {"from": 0, "to": 0} == pytest.approx(
        {"from": 0, "to": 0, "weight": 2 / 3, "confidence": sure[1.0], "accuracy": 0.5})
    assert json.loads(rows[1].line()) == {"chosen": 2.0, "rejected": [0.0, 1.0], "origin": "file:2"}


def test_single_answers_by_hand() -> None:
    """A good answer at +1 and a bad one at +2: one of two lies on its side of zero; margin 1 - 2."""
    rows = judged(((1.0,), 1), ((2.0,), 0))
    found = measure(rows)
    assert found["accuracy"] == 0.5 and found["margin"] == -1.0
    assert found["ece"] == pytest.approx((1 - 1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-2))) / 2)
    assert [json.loads(one.line()) for one in rows] == [
        {"chosen": 1.0, "origin": "file:1"}, {"rejected": 2.0, "origin": "file:2"}]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_model_scores_alike_everywhere(method: str, world: Path, tmp_path: Path,
                                           danlu: Callable[..., int]) -> None:
    """eval_ of the run = predict_ of the run = `danlu eval` on adapter and on export (up to the head's constant)."""
    base, run = save_tiny(tmp_path / "base", "qwen3", CHATML), tmp_path / "run"
    assert danlu("train", {
        "model_name_or_path": str(base), "stage": "rm", "do_train": True, "do_eval": True, "do_predict": True,
        "dataset": "pairs", "eval_dataset": "pairs", "dataset_dir": str(world), "output_dir": str(run),
        "finetuning_type": method, "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2}) == 0
    results = read_json(run / "all_results.json")
    assert results["eval_accuracy"] > 0.5 and 0 < results["eval_ece"] < 1
    expected = {name: results[f"eval_{name}"] for name in NUMBERS}
    assert {name: results[f"predict_{name}"] for name in NUMBERS} == pytest.approx(expected, abs=1e-5)
    rows = [json.loads(line) for line in (run / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 8 and rows[0]["origin"].endswith("pairs.json:1")
    right = sum(row["chosen"] > row["rejected"] for row in rows)
    assert right / 8 == expected["accuracy"]

    assert main(["export", f"model_name_or_path={run}", f"export_dir={tmp_path / 'judge'}"]) == 0
    constant = read_json(tmp_path / "judge" / "export_report.json")["constant"]
    for model, shift in ((run, 0.0), (tmp_path / "judge", constant)):
        scores = tmp_path / f"scores-{model.name}"
        assert main(["eval", "task=pairs", f"model_name_or_path={model}", "dataset=pairs", f"dataset_dir={world}",
                     f"save_dir={scores}", "batch_size=3"]) == 0
        found = read_json(scores / "eval_results.json")
        wanted = expected | {name: expected[name] - shift for name in NUMBERS if name.startswith("rewards/")}
        assert {name: found[name] for name in NUMBERS} == pytest.approx(wanted, abs=1e-4) and found["prompts"] == 8
        told = read_json(scores / "calibration.json")
        assert sum(one["weight"] * abs(one["accuracy"] - one["confidence"]) for one in told["bins"]) / 8 == (
            pytest.approx(found["ece"], abs=1e-6))
        assert (scores / "calibration.png").read_bytes().startswith(b"\x89PNG")
        assert len((scores / "generated_predictions.jsonl").read_text("utf-8").splitlines()) == 8

    second = tmp_path / "second.jsonl"
    second.write_text(json.dumps({"prompt": "rain", "responses": ["wet", "blue", "a mat"], "ranks": [1, 2, 3]}) + "\n")
    assert main(["eval", "task=pairs", f"model_name_or_path={run}", f"dataset=pairs,{second}",
                 f"dataset_dir={world}", f"save_dir={tmp_path / 'both'}"]) == 0
    found = read_json(tmp_path / "both" / "eval_results.json")
    assert found["accuracy_pairs"] == expected["accuracy"]
    assert found["accuracy"] == pytest.approx((8 * found["accuracy_pairs"] + found["accuracy_second"]) / 9)


def test_a_model_without_value_head_is_no_reward_model(tiny_base: Path, world: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "task=pairs", f"model_name_or_path={tiny_base}", "dataset=pairs",
                 f"dataset_dir={world}"]) == 2
    said = capsys.readouterr().err
    assert "is no reward model: it holds no value_head.safetensors" in said and "stage rm" in said


def test_prediction_of_verdicts(tiny_base: Path, world: Path, tmp_path: Path, danlu: Callable[..., int]) -> None:
    """Of answers with thumbs each line holds one reward, under the side that its thumb names."""
    out = tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(tiny_base), "stage": "rm", "rm_loss": "pointwise", "do_train": True,
        "do_predict": True, "dataset": "verdicts", "eval_dataset": "verdicts", "dataset_dir": str(world),
        "output_dir": str(out), "max_steps": 2}) == 0
    rows = [json.loads(line) for line in (out / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    assert [set(row) - {"origin"} for row in rows] == [{"chosen"}, {"rejected"}] * 8
    assert 0 <= read_json(out / "predict_results.json")["predict_accuracy"] <= 1


@pytest.mark.parametrize(("stage", "dataset", "questions"), [("dpo", "pairs", 8), ("kto", "verdicts", 8)])
def test_prediction_of_preferred_answers(stage: str, dataset: str, questions: int, tiny_base: Path, world: Path,
                                         tmp_path: Path, danlu: Callable[..., int]) -> None:
    """dpo answers the prompts of its pairs, kto those of its desirable answers; these are the references."""
    out = tmp_path / "out"
    assert danlu("train", {
        "model_name_or_path": str(tiny_base), "stage": stage, "do_train": False, "do_predict": True,
        "eval_dataset": dataset, "dataset_dir": str(world), "output_dir": str(out), "max_new_tokens": 4}) == 0
    rows = [json.loads(line) for line in (out / "generated_predictions.jsonl").read_text("utf-8").splitlines()]
    chosen = [row["chosen"] for row in json.loads((world / "pairs.json").read_text("utf-8"))]
    assert len(rows) == questions and [row["label"] for row in rows] == chosen
