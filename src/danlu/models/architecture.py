"""Read a model's config and set what the user asks of it: attention kernel, rotary scaling, context length."""

import math
from itertools import chain
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from danlu.core.console import notice, warn
from danlu.core.errors import ConfigError, UserError
from danlu.models.config import ModelConfig
from danlu.models.convert import conversion_of, converted_config
from danlu.models.source import unreachable


def load_config(name: str, config: ModelConfig) -> PreTrainedConfig:
    """Return the config of a model, that of the native architecture for an old checkpoint that equals one.

    Raises UserError for a damaged one and for one that needs code of its own.
    """
    old = None if config.trust_remote_code else conversion_of(name)
    if old is not None:
        return converted_config(*old)
    try:
        return AutoConfig.from_pretrained(
            name, cache_dir=config.cache_dir, revision=config.model_revision, token=config.hf_hub_token,
            trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _config_error(name, error) from error


def attention_implementation(config: ModelConfig) -> str | None:
    """Return transformers' name for the attention kernel, None for its own choice.

    Training over packed rows replaces it by danlu's kernel; this one serves generation and the padded path.
    """
    if config.flash_attn in ("fa2", "fa3"):
        notice(f"flash_attn: {config.flash_attn}: packed rows use torch's own variable-length kernel on a GPU; "
               "elsewhere sdpa is used")
        return None
    return {"auto": None, "sdpa": "sdpa", "disabled": "eager"}[config.flash_attn]


def scale_positions(model_config: Any, config: ModelConfig, max_length: int | None) -> None:
    """Stretch rotary positions in `model_config` so that `max_length` tokens fit (rope_scaling).

    The factor is the length asked for over the model's own, rounded up; 2 when no length is given.
    Raises ConfigError for a model without rotary positions.
    """
    if config.rope_scaling is None:
        return
    parameters = getattr(model_config, "rope_parameters", None)
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        raise ConfigError(f"{model_config.model_type} has no rotary positions that could be stretched",
                          where="rope_scaling", fix="leave rope_scaling out")
    old = model_config.max_position_embeddings
    factor = 2.0 if max_length is None else float(math.ceil(max_length / old))
    if factor <= 1.0:
        notice(f"rope_scaling has no effect: {max_length} tokens fit into the model's {old}")
        return
    scaled = {**parameters, "rope_type": config.rope_scaling, "factor": factor}
    if config.rope_scaling in ("yarn", "llama3", "dynamic"):
        scaled["original_max_position_embeddings"] = old
    if config.rope_scaling == "llama3":
        scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if config.rope_scaling == "dynamic":
        warn("rope_scaling: dynamic changes with the length of each input, which training cannot follow; prefer yarn")
    model_config.rope_parameters = scaled
    model_config.max_position_embeddings = int(old * factor)
    notice(f"rope_scaling {config.rope_scaling}: context {old} -> {int(old * factor)}")


def set_router_loss(model_config: Any, config: ModelConfig) -> None:
    """Give a mixture-of-experts model its load-balancing loss with the weight the user names.

    Raises ConfigError for a model without a router.
    """
    if config.moe_aux_loss_coef is None:
        return
    text = model_config.get_text_config()
    if not hasattr(text, "router_aux_loss_coef"):
        raise ConfigError(f"{model_config.model_type} has no router, so no load-balancing loss",
                          where="moe_aux_loss_coef", fix="leave moe_aux_loss_coef out")
    text.router_aux_loss_coef = config.moe_aux_loss_coef
    text.output_router_logits = config.moe_aux_loss_coef > 0


def context_length(model_config: Any) -> int | None:
    """Return the number of positions the model was built for; None when it has no limit (ALiBi, recurrent)."""
    for key in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(model_config, key, None)
        if isinstance(value, int):
            return value
    return None


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions a model can look up; None when it computes them (rotary, ALiBi) or has none.

    Some architectures keep one or two rows of the table for padding; OPT has two.
    """
    context = context_length(model.config.get_text_config())
    tables = [value for name, value in chain(model.named_parameters(), model.named_buffers())
              if value.ndim == 2 and ("wpe" in name or "embed_positions" in name or "position_embeddings" in name)]
    return context if context is not None and any(0 <= len(table) - context <= 2 for table in tables) else None


def _config_error(name: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(f"{name} comes as Python code of its own", where="model_name_or_path",
                         fix="read that code and set trust_remote_code: true if you trust it")
    if "model type" in text or "model_type" in text:
        return UserError(f"{name}: its architecture is unknown to transformers: {text.splitlines()[0][:200]}",
                         where="model_name_or_path", fix="check model_type in its config.json")
    return unreachable(name, error)
