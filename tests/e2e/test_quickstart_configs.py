"""Every file of configs/ trains one step as it stands, but for the paths of its model and data."""

import math
import sys
from pathlib import Path

import pytest
import yaml

from danlu.cli.main import main
from danlu.stages.base import STAGES
from tests.reading import losses, read_json
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
METHODS = ("full", "freeze", "lora", "qlora")
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

from make_world import make_world  # noqa: E402  the example is a script beside its data, not a package


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's data, and a tiny random base without a chat template."""
    folder = tmp_path_factory.mktemp("island")
    make_world(folder)
    save_tiny(folder / "base")
    return folder


@pytest.fixture(scope="module")
def rewarder(island: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model made of the tiny base, as step `rm` of the quickstart makes one of its own."""
    out = tmp_path_factory.mktemp("rewards") / "rm"
    assert main(["train", str(ROOT / "configs" / "rm_full.yaml"), "max_steps=1", "max_samples=20",
                 f"model_name_or_path={island / 'base'}", f"dataset_dir={island}", f"output_dir={out}"]) == 0
    return out


def test_there_is_a_config_for_every_stage_and_method() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {f"{stage}_{method}" for stage in STAGES for method in METHODS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_trains(config: Path, island: Path, rewarder: Path, tmp_path: Path,
                       capsys: pytest.CaptureFixture[str]) -> None:
    """One step of four examples, one evaluation; no key of the file is without effect."""
    out = tmp_path / "out"
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    rewarded = [f"reward_model={rewarder}", "max_new_tokens=4"] if "reward_model" in values else []
    code = main(["train", str(config), *rewarded, "max_steps=1", f"model_name_or_path={island / 'base'}",
                 f"dataset_dir={island}", f"output_dir={out}", "per_device_train_batch_size=4", "max_samples=20",
                 "logging_steps=1"])
    said = capsys.readouterr().err
    assert code == 0, said
    assert "without effect" not in said
    assert math.isfinite(losses(out)[0])
    assert math.isfinite(read_json(out / "eval_results.json")["eval_loss"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_speaks_of_the_quickstart(config: Path) -> None:
    """Models and data named in a config are those that examples/quickstart/pipeline.yaml makes."""
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    pipeline = yaml.safe_load((ROOT / "examples" / "quickstart" / "pipeline.yaml").read_text(encoding="utf-8"))
    made = {f"{pipeline['output_dir']}/{step['name']}" for step in pipeline["steps"]}
    assert values["model_name_or_path"] in made and values["dataset_dir"] in made
    assert values.get("reward_model", values["model_name_or_path"]) in made
    assert [line for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("### ")] == [
        "### model", "### method", "### dataset", "### output",
        *(["### generate"] if "reward_model" in values else []), "### train", "### eval"]
