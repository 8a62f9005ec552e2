"""Load a base model with everything the configuration asks for: precision, quantisation, new rows, adapters.

Number formats: weights that train are float32 (the master copy) unless pure_bf16; frozen weights are held in the
compute dtype. The random state is the caller's: seed torch before, as new rows, adapters and `train_from_scratch`
draw from it.
"""

from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from danlu.core.console import say
from danlu.core.errors import CapabilityError, ConfigError, UserError
from danlu.models.adapters import apply_adapters
from danlu.models.architecture import attention_implementation, load_config, scale_positions, set_router_loss
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.convert import conversion_of, converted_weights
from danlu.models.freeze import train_all, train_some_layers
from danlu.models.quantization import is_packed, keep_packing, quantization_settings
from danlu.models.quiet import quiet_loading
from danlu.models.source import check_model_source, unreachable
from danlu.models.tokenizer import adapter_paths
from danlu.models.vocabulary import fit_vocabulary


def load_model(
    model_cfg: ModelConfig, quant_cfg: QuantizationConfig, adapter_cfg: AdapterConfig, *,
    tokenizer: PreTrainedTokenizerBase, trainable: bool, compute_dtype: torch.dtype, max_length: int | None = None,
) -> PreTrainedModel | PeftModel:
    """Return the model ready to train or to answer.

    max_length  tokens that must fit, for rope_scaling
    Raises UserError for a missing or damaged folder, a method that does not fit, an adapter of another base.
    """
    paths = adapter_paths(model_cfg)
    _check_method(adapter_cfg, paths, trainable)
    name = check_model_source(model_cfg.model_name_or_path, weights=not model_cfg.train_from_scratch,
                              cache_dir=model_cfg.cache_dir)
    config = load_config(name, model_cfg)
    scale_positions(config, model_cfg, max_length)
    set_router_loss(config, model_cfg)
    settings = quantization_settings(quant_cfg, adapter_cfg, config, trainable=trainable, compute_dtype=compute_dtype)
    masters = trainable and adapter_cfg.finetuning_type != "lora" and not adapter_cfg.pure_bf16
    dtype = torch.float32 if masters else compute_dtype
    if model_cfg.train_from_scratch:
        model = _random_model(config, model_cfg, settings, dtype)
    else:
        model = read_weights(name, config, model_cfg, settings=settings, dtype=dtype)
    new_rows = fit_vocabulary(model, tokenizer, model_cfg, paths)
    adapted = _choose_trainable(
        model, model_cfg, adapter_cfg, paths, name, trainable=trainable, compute_dtype=compute_dtype,
        new_rows=new_rows)
    if model_cfg.upcast_layernorm:
        upcast_norms(adapted)
    if trainable:
        _report(adapted, model_cfg.print_param_status)
    return adapted.train(trainable)


def read_weights(
    name: str, config: PreTrainedConfig, model_cfg: ModelConfig, *, settings: Any, dtype: torch.dtype,
) -> PreTrainedModel:
    """Read a model's weights; refuse a folder in which some are missing or of another shape."""
    old = None if model_cfg.trust_remote_code else conversion_of(name)
    kind: Any = AutoModelForCausalLM if old is None else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    source = name if old is None else None
    state = None if old is None else converted_weights(*old)
    try:
        with quiet_loading(name):
            model, info = kind.from_pretrained(
                source, state_dict=state, config=config, dtype=dtype, quantization_config=settings,
                attn_implementation=attention_implementation(model_cfg), cache_dir=model_cfg.cache_dir,
                revision=model_cfg.model_revision,
                token=model_cfg.hf_hub_token, trust_remote_code=model_cfg.trust_remote_code, output_loading_info=True)
    except (OSError, ImportError, SafetensorError) as error:
        raise unreachable(name, error) from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise _unloadable(name, error) from error
    keep_packing(model)
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"{name} lacks weights of a {type(model).__name__}: {shown}", where="model_name_or_path",
                        fix="copy the model again, or name a causal language model")
    return _mend_generation_config(model)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (trainable, all) parameters; packed 4-bit weights count each value."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 * parameter.element_size() if is_packed(parameter) else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def upcast_norms(model: nn.Module) -> None:
    """Hold the weights of normalisation layers in float32."""
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower() or name.split(".")[-1].startswith("ln_"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def _random_model(
    config: PreTrainedConfig, model_cfg: ModelConfig, settings: Any, dtype: torch.dtype,
) -> PreTrainedModel:
    if settings is not None:
        raise ConfigError("train_from_scratch starts from random weights; quantising them makes no sense",
                          where="quantization_bit", fix="leave quantization_bit out")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention_implementation(model_cfg),
        trust_remote_code=model_cfg.trust_remote_code)
    # Drawn in float32 and rounded after, so that the seed means the same weights in every precision.
    return model.to(dtype)


def _choose_trainable(
    model: PreTrainedModel, model_cfg: ModelConfig, adapter_cfg: AdapterConfig, paths: tuple[str, ...], name: str, *,
    trainable: bool, compute_dtype: torch.dtype, new_rows: tuple[str, ...],
) -> PreTrainedModel | PeftModel:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if paths or (trainable and adapter_cfg.finetuning_type == "lora"):
        return apply_adapters(model, adapter_cfg, paths, trainable=trainable, base_name=name, trained_in_full=new_rows)
    if not trainable:
        return model
    if adapter_cfg.finetuning_type == "full":
        train_all(model)
        return model
    train_some_layers(model, adapter_cfg)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(compute_dtype)
    return model


def _check_method(adapter_cfg: AdapterConfig, paths: tuple[str, ...], trainable: bool) -> None:
    if trainable and paths and adapter_cfg.finetuning_type != "lora":
        raise ConfigError(
            f"finetuning_type: {adapter_cfg.finetuning_type} cannot go on from an adapter",
            where="adapter_name_or_path",
            fix="set finetuning_type: lora, or merge the adapter with `danlu export` and train its result")


def _mend_generation_config(model: PreTrainedModel) -> PreTrainedModel:
    """Switch sampling on where a checkpoint sets a temperature without it; saving refuses such files otherwise."""
    settings = model.generation_config
    if settings is not None and not settings.do_sample and (
            settings.temperature not in (None, 1.0) or settings.top_p not in (None, 1.0)):
        settings.do_sample = True
    return model


def _report(model: nn.Module, every_weight: bool) -> None:
    trainable, total = count_parameters(model)
    say(f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / max(total, 1):.4g} %)")
    if every_weight:
        for name, parameter in model.named_parameters():
            say(f"  {name} {tuple(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')} "
                f"{parameter.device} {'trains' if parameter.requires_grad else 'frozen'}")


def _unloadable(name: str, error: Exception) -> UserError:
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "attn_implementation" in text or "scaled_dot_product_attention" in text:
        return CapabilityError(f"{name}: {lines[0][:200]}", where="flash_attn", fix="set flash_attn: auto")
    detail = next((line for line in lines if "mismatch" in line.lower()), lines[0] if lines else "")
    return UserError(f"{name} cannot be loaded as a causal language model: {detail[:300]}",
                     where="model_name_or_path", fix="check that config.json and the weights belong together")
