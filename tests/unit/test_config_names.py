"""Older and foreign names of keys: each is read as its author meant it, and said so."""

from pathlib import Path
from typing import Any

import pytest

from danlu.core import key_names, schema
from danlu.core.errors import ConfigError
from danlu.core.resolve import resolve


def read(verb: str = "train", **values: Any) -> dict[str, Any]:
    """Resolve `--key=value` words."""
    return resolve(None, [f"--{key}={value}" for key, value in values.items()], verb).values


@pytest.mark.parametrize(("given", "expected"), [
    ({"checkpoint_dir": "a,b"}, {"adapter_name_or_path": ["a", "b"]}),
    ({"checkpoint_dir": "a", "finetuning_type": "full", "model_name_or_path": "m"},
     {"model_name_or_path": "a", "finetuning_type": "full"}),
    ({"resume_lora_training": "False"}, {"create_new_adapter": True}),
    ({"resume_lora_training": "true"}, {"create_new_adapter": False}),
    ({"max_source_length": 300, "max_target_length": 200}, {"cutoff_len": 500}),
    ({"max_source_length": 300}, {"cutoff_len": 812}),
    ({"max_target_length": 300}, {"cutoff_len": 812}),
    ({"task_type": "pretrain"}, {"stage": "pt"}),
    ({"task_type": "sft"}, {"stage": "sft"}),
    ({"train_mode": "qlora"}, {"finetuning_type": "lora", "quantization_bit": 4}),
    ({"train_mode": "qlora", "bits": 8}, {"finetuning_type": "lora", "quantization_bit": 8}),
    ({"train_mode": "full"}, {"finetuning_type": "full"}),
    ({"flash_attn": "true"}, {"flash_attn": "fa2"}),
    ({"flash_attn": "False"}, {"flash_attn": "disabled"}),
    ({"flash_attn": "auto"}, {"flash_attn": "auto"}),
    ({"quantization_method": "bitsandbytes"}, {"quantization_method": "bnb"}),
    ({"use_swanlab": "true", "report_to": "wandb"}, {"report_to": ["wandb", "swanlab"]}),
    ({"use_swanlab": "true", "report_to": "none"}, {"report_to": ["swanlab"]}),
    ({"use_swanlab": "false"}, {}),
    ({"include_num_input_tokens_seen": "true"}, {"include_num_input_tokens_seen": "all"}),
    ({"include_num_input_tokens_seen": "false"}, {"include_num_input_tokens_seen": "no"}),
    ({"train_sampling_strategy": "group_by_length"}, {"group_by_length": True}),
    ({"train_sampling_strategy": "sequential"}, {"disable_shuffling": True}),
    ({"adafactor": "true"}, {"optim": "adafactor"}),
    ({"max_seq_length": 100, "template_name": "qwen", "tokenize_num_workers": 2},
     {"cutoff_len": 100, "template": "qwen", "preprocessing_num_workers": 2}),
])
def test_readings(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(**given) == expected


def test_export_takes_the_old_output_dir() -> None:
    assert read("export", output_dir="x") == {"export_dir": "x"}
    assert read("export", output_dir="x", export_dir="y") == {"output_dir": "x", "export_dir": "y"}
    assert read("train", output_dir="x") == {"output_dir": "x"}


def test_stage_orpo_is_a_loss_of_dpo() -> None:
    values = resolve(None, ["stage=orpo"], "train").values
    assert values == {"stage": "dpo", "pref_loss": "orpo"}


@pytest.mark.parametrize("old", sorted(key_names.RENAMED))
def test_every_renamed_key_leads_to_a_known_one(old: str) -> None:
    """No chain: the new name is no older name itself, and the schema knows it."""
    new = key_names.RENAMED[old]
    assert new not in key_names.RENAMED
    assert schema.keys()[new]["x-status"] in ("active", "no_effect", "out_of_scope")
    assert schema.keys()[old]["x-alias-of"] == new


def test_renaming_is_told_in_one_line() -> None:
    resolved = resolve(None, ["--bits=4", "--max_seq_length=10", "--evaluation_strategy=no"], "train")
    told = [text for text in resolved.notices if "bits" in text]
    assert told == ["older or foreign names are read as: bits -> quantization_bit=4; max_seq_length -> cutoff_len=10; "
                    "evaluation_strategy -> eval_strategy=no"]


def test_two_names_of_one_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("cutoff_len: 5\nmax_seq_length: 6\n")
    with pytest.raises(ConfigError, match=r'run.yaml:2: "max_seq_length" means cutoff_len, which .*run.yaml:1'):
        resolve(path, [], "train")


def test_old_name_on_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("cutoff_len: 5\n")
    assert resolve(path, ["--max_seq_length", "6"], "train").values == {"cutoff_len": 6}


def test_mistake_in_an_old_key_names_both() -> None:
    with pytest.raises(ConfigError, match=r'"quantization_bit" \(written as bits\): expected one of 4, 8, null'):
        read(bits=5)


@pytest.mark.parametrize(("words", "parts"), [
    (["--use_unsloth"], ["use_unsloth: without effect"]),
    (["use_galore=false"], ["use_galore: without effect, GaLore is out of scope"]),
    (["ppo_epochs=2"], ["without effect in stage sft (a key of stage ppo): ppo_epochs"]),
    (["stage=pt", "mask_history=true"], ["without effect in stage pt: mask_history (command line)"]),
    (["finetuning_type=full", "lora_rank=4", "lora_alpha=4"],
     ["without effect unless finetuning_type is lora: lora_rank (command line), lora_alpha (command line)"]),
    (["quantization_type=fp4"], ["without effect unless quantization_bit is 4: quantization_type"]),
    (["temperature=0.5"], ["without effect in `danlu train`: temperature"]),
    (["export_dir=x"], ["without effect in `danlu train`: export_dir"]),
    (["eval_steps=5"], ["without effect unless eval_strategy is steps: eval_steps"]),
])
def test_keys_without_effect_get_one_line(words: list[str], parts: list[str]) -> None:
    notices = resolve(None, words, "train").notices
    assert len(notices) == 1, notices
    for part in parts:
        assert part in notices[0]


@pytest.mark.parametrize("words", [
    ["predict_with_generate=true", "temperature=0.5"], ["finetuning_type=lora", "lora_rank=4"],
    ["eval_strategy=steps", "eval_steps=5"], ["stage=sft", "mask_history=true"], ["seed=3"]])
def test_keys_with_effect_get_none(words: list[str]) -> None:
    assert resolve(None, words, "train").notices == ()


def test_a_training_file_given_to_chat() -> None:
    notices = resolve(None, ["lora_rank=4", "learning_rate=1", "dataset=a", "template=qwen", "seed=1"], "chat").notices
    assert notices == (
        "without effect in `danlu chat`: learning_rate (command line), dataset (command line)",)
