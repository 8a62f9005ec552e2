"""`danlu plan` says before a run what the run would do, and refuses what cannot work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.main import main
from tests.tiny import save_tiny


@pytest.fixture
def config(tiny_base: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of 8 dialogues, 2 x 2 a step, 3 epochs."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    return {"model_name_or_path": str(tiny_base), "dataset": "chat", "dataset_dir": str(world),
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "num_train_epochs": 3, "warmup_ratio": 0.5, "save_steps": 2, "save_total_limit": 2, "lora_rank": 4,
            "lora_target": "q_proj"}


def test_plan(config: dict[str, Any], danlu: Callable[..., int], capsys: pytest.CaptureFixture[str],
              tmp_path: Path) -> None:
    """8 examples / 4 = 2 steps an epoch, 6 in all, 3 of warm-up; LoRA on 2 layers: 2 x 4 x (32 + 32) = 512 weights.

    Three checkpoints are written (steps 2, 4, 6), two kept, each 512 x (4 + 8) bytes = 6 KiB.
    """
    assert danlu("plan", config, "seed=3") == 0
    said = capsys.readouterr().out
    for line in ("8 examples", "4 = 2 x 2 accumulated x 1 processes",
                 "6, 2 per epoch", "3 steps", "every 2 steps, 2 kept", "512 of ", "2 x 6 KiB", "step 0"):
        assert line in said, f"{line!r} not in:\n{said}"
    origins = {words[0]: " ".join(words[2:]) for words in map(str.split, said.splitlines()) if len(words) > 2}
    values = {words[0]: words[1] for words in map(str.split, said.splitlines()) if len(words) > 2}
    assert (values["seed"], values["lora_target"], values["add_tokens"]) == ("3", "q_proj", "unset")
    assert origins["seed"] == "command line" and origins["adam_beta1"] == "default"
    assert origins["lora_rank"] == f"{tmp_path}/plan.yaml:11"
    assert not (tmp_path / "out").exists()


def test_the_run_does_what_the_plan_says(config: dict[str, Any], danlu: Callable[..., int],
                                         capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert danlu("train", config) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    capsys.readouterr()
    assert danlu("plan", config) == 0
    assert "checkpoint-6" in capsys.readouterr().out


def test_what_ppo_needs_beside_the_policy_is_counted(config: dict[str, Any], world: Path, danlu: Callable[..., int],
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """The value network is a second adapter of 512 weights: value, gradient and two moments, 512 x 16 bytes = 8 KiB.

    A frozen reward model is as large as its file; answers are 64 slots of prompt and 2 tokens, 2 x 2 layers x 2 heads x
    8 values of float32 each = 256 bytes a token. GRPO has no value network.
    """
    base = config["model_name_or_path"]
    told = {}
    for name, keys in {"ppo": {}, "grpo": {"stage": "grpo"}}.items():
        rewarded = {"reward_model": base, "reward_model_type": "full", "max_new_tokens": 2}
        assert danlu("plan", {**config, "stage": "ppo", **rewarded, **keys}) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        told[name] = {words[0]: " ".join(words[1:3]) for words in lines if len(words) > 2}
    assert told["ppo"]["value"] == "8 KiB" and "value" not in told["grpo"]
    size = (Path(base) / "model.safetensors").stat().st_size
    assert told["ppo"]["reward"] == told["grpo"]["reward"] == f"{size / 1024:.0f} KiB"
    assert told["ppo"]["answers"].endswith("KiB")


def test_a_second_network_is_counted(config: dict[str, Any], danlu: Callable[..., int],
                                     capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The base has 39,072 float32 values: 153 KiB. Below a fresh adapter it serves as reference itself; else it is
    loaded again: with full training, or a ref_model, of which 4 bits take less."""
    told = {}
    for name, keys in {"lora": {}, "full": {"finetuning_type": "full"}, "orpo": {"pref_loss": "orpo"},
                       "named": {"ref_model": config["model_name_or_path"]},
                       "packed": {"ref_model": config["model_name_or_path"], "ref_model_quantization_bit": 4}}.items():
        assert danlu("plan", {**config, "stage": "dpo", "dataset": "pairs", **keys}) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        told[name] = next((" ".join(row[1:]) for row in rows if row[:1] == ["reference"]), "")
    assert (told["lora"], told["orpo"]) == ("", "")
    assert told["full"] == told["named"] == "153 KiB"
    assert float(told["packed"].split()[0]) < 153


@pytest.mark.parametrize(("changed", "parts"), [
    ({"cutoff_len": 0}, ["cutoff_len", "at least 1"]),
    ({"model_name_or_path": "/nowhere"}, ["/nowhere"]),
    ({"dataset": "chatt"}, ["chatt", "did you mean"]),
    ({"lora_target": "q_prj"}, ["q_prj", "q_proj"]),
    ({"adapter_name_or_path": "nowhere"}, ["adapter_name_or_path", "nowhere does not exist"]),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["eval_strategy"]),
    ({"pissa_init": True, "quantization_bit": 4, "double_quantization": False}, ["pissa_init", "quantization_bit"]),
    ({"per_device_train_batch_size": 10**10, "dataloader_drop_last": True}, ["dataloader_drop_last leaves nothing"]),
    ({"per_device_train_batch_size": 10**10}, ["memory", "per_device_train_batch_size"]),
])
def test_what_cannot_work_is_refused(config: dict[str, Any], danlu: Callable[..., int],
                                     capsys: pytest.CaptureFixture[str], changed: dict[str, Any],
                                     parts: list[str]) -> None:
    assert danlu("plan", {**config, **changed}) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for part in parts:
        assert part in said, said


def test_a_folder_with_a_result_is_refused(config: dict[str, Any], danlu: Callable[..., int],
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert danlu("train", {**config, "save_strategy": "no"}) == 0
    assert danlu("plan", {**config, "save_strategy": "no"}) == 2
    assert "overwrite_output_dir" in capsys.readouterr().err
    assert danlu("plan", {**config, "save_strategy": "no"}, "overwrite_output_dir=true") == 0


def test_secrets_are_neither_shown_nor_stored(config: dict[str, Any], danlu: Callable[..., int],
                                              capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert danlu("plan", {**config, "hf_hub_token": "hf_secret"}) == 0
    assert danlu("train", {**config, "hf_hub_token": "hf_secret"}) == 0
    said = capsys.readouterr()
    assert "hf_secret" not in said.out + said.err
    assert not [path for path in (tmp_path / "out").rglob("*")
                if path.is_file() and b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("words", [["env"], ["env", "--help"], ["version"], ["plan", "--help"]])
def test_small_verbs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.strip()
    assert str(Path.home()) not in said


def test_what_train_refuses_is_refused(config: dict[str, Any], danlu: Callable[..., int],
                                       capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file for a folder, a tracker that is not there, an adapter of a base with the same shapes and other weights."""
    assert danlu("train", {**config, "max_steps": 1}) == 0
    other = tmp_path / "other"
    save_tiny(other, seed=7)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    on_other = {"model_name_or_path": str(other), "adapter_name_or_path": str(tmp_path / "out")}
    fresh = {**config, "output_dir": str(tmp_path / "fresh")}
    for changed, part in (({"output_dir": str(tmp_path / "file")}, "is a file"),
                          ({"output_dir": str(tmp_path / "file/in")}, "is a file"),
                          ({"report_to": "mlflow"}, "pip install mlflow"), (on_other, "another base")):
        for verb in ("plan", "train"):
            capsys.readouterr()
            assert danlu(verb, {**fresh, **changed}) == 2
            said = capsys.readouterr().err
            assert part in said and "fix:" in said and "Traceback" not in said, said
    assert not (tmp_path / "fresh").exists() or not list((tmp_path / "fresh").iterdir())
