"""The reference of pipelines: its example is a pipeline that plans, and it names every kind of step and key."""

import re
from pathlib import Path

from danlu.launch.kinds import KINDS
from danlu.launch.pipeline_file import STEP_KEYS, TOP_KEYS, read_pipeline
from danlu.launch.plan import plan_steps

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "run.md").read_text(encoding="utf-8")


def test_the_example_plans_as_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0], encoding="utf-8")
    steps = {step.name: step for step in plan_steps(read_pipeline(path, []))}
    assert steps["ppo"].upstream == ("rm", "sft")
    assert steps["ppo"].values["adapter_name_or_path"] == ["runs/assistant/sft"]
    assert steps["ppo"].values["reward_model"] == "runs/assistant/rm"
    assert steps["ask_dpo"].values["adapter_name_or_path"] == ["runs/assistant/sft", "runs/assistant/dpo"]
    assert steps["ask_dpo"].values["template"] == "qwen" and "template" not in steps["compare"].values


def test_every_kind_and_key_is_told() -> None:
    for word in (*KINDS, *STEP_KEYS, *TOP_KEYS):
        assert re.search(rf"\b{word}\b", PAGE), word
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(KINDS)
