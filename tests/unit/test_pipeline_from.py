"""`from: STEP`: which keys it stands for, after whole models and after adapters, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import UserError
from danlu.launch.pipeline_file import read_pipeline
from danlu.launch.plan import Planned, plan_steps


def planned(tmp_path: Path, *steps: str, defaults: str = "{}") -> dict[str, Planned]:
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\noutput_dir: out\ndefaults: {defaults}\nsteps:\n" + "".join(
        f"  - {{{one}}}\n" for one in steps))
    return {one.name: one for one in plan_steps(read_pipeline(path, []))}


def model(step: Planned) -> tuple[Any, Any, Any]:
    keys = ("model_name_or_path", "adapter_name_or_path", "create_new_adapter")
    return tuple(step.values.get(key) for key in keys)  # type: ignore[return-value]


NEW = "name: new, run: new, architecture: llama-2m, vocab_size: 300, tokenizer_corpus: x"
SFT = "name: sft, run: train, stage: sft, model_name_or_path: base"


def test_a_whole_model_becomes_the_model(tmp_path: Path) -> None:
    """After new, after full training, after an export; upstream is the step that is named."""
    steps = planned(tmp_path, NEW, "name: pt, run: train, stage: pt, finetuning_type: full, from: new",
                    "name: sft, run: train, stage: sft, from: pt", "name: merged, run: export, from: sft",
                    "name: ask, run: eval, task: exact, from: merged")
    assert model(steps["pt"]) == ("out/new", None, None)
    assert model(steps["sft"]) == ("out/pt", None, None)
    assert model(steps["merged"]) == ("out/pt", ["out/sft"], None)
    assert model(steps["ask"]) == ("out/merged", None, None)
    assert [step.upstream for step in steps.values()] == [(), ("new",), ("pt",), ("sft",), ("merged",)]
    assert "from" not in steps["pt"].verb_values


def test_training_after_an_adapter_merges_it_and_begins_another(tmp_path: Path) -> None:
    """base -> sft -> ppo -> dpo: each adapter stands on all before it, and evaluation takes the whole chain."""
    steps = planned(tmp_path, SFT, "name: a, run: train, stage: sft, from: sft",
                    "name: b, run: train, stage: dpo, from: a", "name: ask, run: eval, task: exact, from: b")
    assert model(steps["a"]) == ("base", ["out/sft"], True)
    assert model(steps["b"]) == ("base", ["out/sft", "out/a"], True)
    assert model(steps["ask"]) == ("base", ["out/sft", "out/a", "out/b"], None)


def test_training_that_goes_on_with_the_adapter_itself(tmp_path: Path) -> None:
    """create_new_adapter: false trains the adapter on: the result replaces it in the chain."""
    steps = planned(tmp_path, "name: sft, run: train, model_name_or_path: base, adapter_name_or_path: 'x, y'",
                    "name: more, run: train, from: sft, create_new_adapter: false",
                    "name: ask, run: eval, task: exact, from: more")
    assert model(steps["more"]) == ("base", ["x", "out/sft"], False)
    assert model(steps["ask"]) == ("base", ["x", "out/more"], None)


def test_defaults_and_older_names(tmp_path: Path) -> None:
    """A default model is for the steps without `from`; finetuning_type may stand in the defaults."""
    steps = planned(tmp_path, "name: sft, run: train", "name: more, run: train, from: sft",
                    "name: dpo, run: train, finetuning_type: lora, from: more",
                    defaults="{model_name_or_path: base, finetuning_type: full}")
    assert model(steps["sft"]) == ("base", None, None)
    assert model(steps["more"]) == ("out/sft", None, None)
    assert model(steps["dpo"]) == ("out/more", None, None)


@pytest.mark.parametrize(("second", "parts"), [
    ("name: two, run: train, from: stf", ["p.yaml:6", '"stf"', 'did you mean "sft"']),
    ("name: two, run: train, from: two", ["p.yaml:6", "not a step above"]),
    ("name: two, run: train, from: 3", ["p.yaml:6", "the name of a step"]),
    ("name: two, run: train, from: sft, model_name_or_path: x", ["p.yaml:6", "both name the model"]),
    ("name: two, run: train, from: sft, adapter_name_or_path: x", ["p.yaml:6", "both name the model"]),
    ("name: two, run: command, command: ls, from: sft", ["p.yaml:6", "starts from no model"]),
    ("name: two, run: compare, evaluations: {a: b}, from: sft", ["p.yaml:6", "starts from no model"]),
])
def test_mistakes_carry_their_line(tmp_path: Path, second: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, SFT, second)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_a_step_that_makes_no_model_and_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs command and makes no model"):
        planned(tmp_path, "name: one, run: command, command: ls", "name: two, run: train, from: one")
    with pytest.raises(UserError, match="not a step above"):
        planned(tmp_path, "name: one, run: train, from: none")


def test_one_mistake_above_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, SFT + ", lora_rank: many", "name: two, run: train, from: sft")
    assert str(caught.value).count("lora_rank") == 1 and "two" not in str(caught.value)
