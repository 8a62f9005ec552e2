"""The one table of historic and foreign key names and values, and what each is read as.

`RENAMED` holds names whose meaning did not change. `REWRITTEN` holds names and values whose reading depends on
the rest of the configuration; each rule returns the keys and values that stand in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RENAMED: dict[str, str] = {
    # model and adapters
    "use_auth_token": "hf_hub_token", "hf_auth_token": "hf_hub_token", "use_cache": "use_kv_cache",
    "vllm_dtype": "infer_dtype", "bits": "quantization_bit", "new_special_tokens": "add_special_tokens",
    "lora_bf16_mode": "pure_bf16", "num_layer_trainable": "freeze_trainable_layers",
    "name_module_trainable": "freeze_trainable_modules", "activation_checkpointing": "gradient_checkpointing",
    # data
    "max_seq_length": "cutoff_len", "prompt_template": "template", "template_name": "template",
    "source_prefix": "default_system", "system_prompt": "default_system", "sft_packing": "packing",
    "cache_path": "tokenized_path", "dev_ratio": "val_size", "tokenize_num_workers": "preprocessing_num_workers",
    # training
    "evaluation_strategy": "eval_strategy", "neft_alpha": "neftune_noise_alpha", "no_cuda": "use_cpu",
    "swanlab_project": "project",
    "per_gpu_train_batch_size": "per_device_train_batch_size", "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "ppo_logger": "report_to", "include_tokens_per_second": "include_effective_tokens_per_second",
    # generation
    "eval_num_beams": "num_beams", "generation_num_beams": "num_beams", "generation_max_length": "max_length",
    # preference stages
    "reward_model_checkpoint": "reward_model_adapters", "ref_model_checkpoint": "ref_model_adapters",
    "dpo_ref_model": "ref_model", "dpo_ref_model_checkpoint": "ref_model_adapters", "dpo_beta": "pref_beta",
    "orpo_beta": "pref_beta", "beta": "pref_beta", "dpo_loss": "pref_loss", "dpo_ftx": "pref_ftx",
    # parts that are out of scope keep their old names too, so that the sentence about them is found
    "badam_switch_block_every": "badam_switch_interval", "image_dir": "media_dir",
    "image_resolution": "image_max_pixels", "video_resolution": "video_max_pixels",
    "train_mm_proj_only": "freeze_multi_modal_projector",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a rule may look at: the verb, and every key given so far, under its present name."""

    verb: str
    given: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key` as written, or `default`."""
        return self.given.get(key, default)


Rule = Callable[[Any, Surroundings], dict[str, Any] | None]

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def is_yes(value: Any) -> bool:
    """Return whether a value as written says yes."""
    return str(value).lower() in YES


def is_no(value: Any) -> bool:
    """Return whether a value as written says no."""
    return str(value).lower() in NO


def _checkpoint_dir(value: Any, others: Surroundings) -> dict[str, Any]:
    whole = others.get("finetuning_type") == "full" or others.get("train_mode") == "full"
    return {"model_name_or_path" if whole else "adapter_name_or_path": value}


def _resume_lora_training(value: Any, others: Surroundings) -> dict[str, Any]:
    return {"create_new_adapter": not is_yes(value)}


def _source_length(value: Any, others: Surroundings) -> dict[str, Any]:
    return {"cutoff_len": _sum(value, others.get("max_target_length", 512))}


def _target_length(value: Any, others: Surroundings) -> dict[str, Any]:
    if others.get("max_source_length") is not None:
        return {}
    return {"cutoff_len": _sum(512, value)}


def _sum(first: Any, second: Any) -> Any:
    try:
        return int(first) + int(second)
    except (TypeError, ValueError):
        return f"{first} + {second}"


def _stage(value: Any, others: Surroundings) -> dict[str, Any] | None:
    if value == "orpo":
        return {"stage": "dpo", "pref_loss": "orpo"}
    return {"stage": "pt"} if value == "pretrain" else None


def _task_type(value: Any, others: Surroundings) -> dict[str, Any]:
    return {"stage": "pt" if value == "pretrain" else value}


def _train_mode(value: Any, others: Surroundings) -> dict[str, Any]:
    if value != "qlora":
        return {"finetuning_type": value}
    return {"finetuning_type": "lora", "quantization_bit": others.get("bits", others.get("quantization_bit", 4))}


def _flash_attn(value: Any, others: Surroundings) -> dict[str, Any] | None:
    if is_yes(value):
        return {"flash_attn": "fa2"}
    return {"flash_attn": "disabled"} if is_no(value) else None


def _output_dir(value: Any, others: Surroundings) -> dict[str, Any] | None:
    if others.verb == "export" and others.get("export_dir") is None:
        return {"export_dir": value}
    return None


def _tokens_seen(value: Any, others: Surroundings) -> dict[str, Any] | None:
    if is_yes(value):
        return {"include_num_input_tokens_seen": "all"}
    return {"include_num_input_tokens_seen": "no"} if is_no(value) and value != "no" else None


def _sampling(value: Any, others: Surroundings) -> dict[str, Any] | None:
    readings = {"random": {}, "sequential": {"disable_shuffling": True}, "group_by_length": {"group_by_length": True}}
    return readings.get(value)


def _use_swanlab(value: Any, others: Surroundings) -> dict[str, Any]:
    if not is_yes(value):
        return {}
    named = others.get("report_to")
    listed = named if isinstance(named, list) else [one for one in str(named or "").split(",") if one]
    return {"report_to": [one for one in listed if one not in ("none", "swanlab")] + ["swanlab"]}


def _adafactor(value: Any, others: Surroundings) -> dict[str, Any]:
    return {"optim": "adafactor"} if is_yes(value) else {}


def _one_value(key: str, old: Any, new: str) -> Rule:
    return lambda value, others: {key: new} if str(value).lower() == str(old).lower() else None


REWRITTEN: dict[str, Rule] = {
    "checkpoint_dir": _checkpoint_dir,
    "resume_lora_training": _resume_lora_training,
    "max_source_length": _source_length,
    "max_target_length": _target_length,
    "stage": _stage,
    "task_type": _task_type,
    "train_mode": _train_mode,
    "flash_attn": _flash_attn,
    "output_dir": _output_dir,
    "train_sampling_strategy": _sampling,
    "use_swanlab": _use_swanlab,
    "adafactor": _adafactor,
    "quantization_method": _one_value("quantization_method", "bitsandbytes", "bnb"),
    "infer_backend": _one_value("infer_backend", "hf", "huggingface"),
    "optim": _one_value("optim", "adamw_hf", "adamw_torch"),
    "include_num_input_tokens_seen": _tokens_seen,
}

ONLY_OLD = frozenset(REWRITTEN) - {
    "stage", "flash_attn", "output_dir", "quantization_method", "infer_backend", "optim",
    "include_num_input_tokens_seen"}
"""Names of REWRITTEN that are no keys of today."""

REPLACING = frozenset({"checkpoint_dir", "use_swanlab"})
"""Rules whose reading stands in place of the same key given beside it."""

REMARKS: dict[str, str] = {
    "train_mode": "keys not given take danlu's defaults: lora_rank 8, lora_alpha 2 x lora_rank, lora_dropout 0",
}
"""What else the reader of a file with such a name should know."""
