"""Load a transformers sequence classifier whole: every weight stored, none made up."""

from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from danlu.core.errors import UserError
from danlu.models.architecture import load_config
from danlu.models.config import ModelConfig
from danlu.models.quantization import keep_packing, quantization_settings
from danlu.models.quiet import quiet_loading
from danlu.models.source import check_model_source, unreachable
from danlu.rewards.base import RewardContext, keys_renamed


def own_model_config(source: str, context: RewardContext) -> ModelConfig:
    """Return the model keys of the run for another model: `source`, as it is stored."""
    return context.model.model_copy(update={
        "model_name_or_path": source, "adapter_name_or_path": (), "adapter_folder": None, "train_from_scratch": False,
        "resize_vocab": False, "add_tokens": (), "add_special_tokens": (), "new_special_tokens_config": None})


def read_config(source: str, context: RewardContext) -> Any:
    """Return the model's configuration. Raises UserError when the folder holds no model."""
    config = own_model_config(source, context)
    with keys_renamed(adapter_name_or_path="reward_model_adapters", model_name_or_path="reward_model"):
        return load_config(check_model_source(source, cache_dir=config.cache_dir), config)


def is_classifier(config: Any) -> bool:
    """Return whether the stored model is a sequence classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def load_classifier(source: str, context: RewardContext, bits: int | None) -> PreTrainedModel:
    """Return the sequence classifier of a folder or hub id, frozen.

    Raises UserError when it cannot be read, or lacks weights, its score head for instance.
    """
    keys, config = own_model_config(source, context), read_config(source, context)
    quantization = context.quantization.model_copy(update={"quantization_bit": bits})
    try:
        with quiet_loading(source), keys_renamed(quantization_bit="reward_model_quantization_bit"):
            settings = quantization_settings(quantization, context.adapter, config, trainable=False,
                                             compute_dtype=context.compute_dtype)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, config=config, dtype=context.compute_dtype, quantization_config=settings,
                cache_dir=keys.cache_dir, token=keys.hf_hub_token, trust_remote_code=keys.trust_remote_code,
                output_loading_info=True)
    except (OSError, ImportError, SafetensorError) as error:
        raise unreachable(source, error, "reward_model") from error
    except (ValueError, RuntimeError, KeyError) as error:
        detail = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{source} cannot be loaded as a sequence classifier: {detail[:300]}", where="reward_model",
                        fix="name a folder saved from a model of class ...ForSequenceClassification") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{source} is no trained {type(model).__name__}: it lacks {', '.join(missing[:5])}",
                        where="reward_model", fix="name a model that was trained as a sequence classifier")
    keep_packing(model)
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen
