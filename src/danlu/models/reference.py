"""The frozen model that alignment compares the policy with: which one it is, and loading it."""

import torch
from transformers import PreTrainedTokenizerBase

from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.models.load import load_model
from danlu.models.packed_lm import PackedLM
from danlu.models.tokenizer import adapter_paths


def adapter_off_is_start(model_cfg: ModelConfig, adapter_cfg: AdapterConfig, *, trainable: bool) -> bool:
    """Return whether the policy without its adapter is the model that training starts from.

    Not so when training goes on from a saved adapter, and not with PiSSA, which takes its start out of the base.
    """
    paths = adapter_paths(model_cfg)
    if not trainable:
        return bool(paths)
    fresh = adapter_cfg.create_new_adapter or not paths
    return adapter_cfg.finetuning_type == "lora" and fresh and not adapter_cfg.pissa_init


def own_reference(
    model_cfg: ModelConfig, quant_cfg: QuantizationConfig, adapter_cfg: AdapterConfig, *, name: str | None,
    adapters: tuple[str, ...], bits: int | None, trainable: bool,
) -> tuple[ModelConfig, QuantizationConfig] | None:
    """Return how a reference of its own is loaded; None when it is the policy with its adapter switched off.

    name, adapters, bits  ref_model, ref_model_adapters, ref_model_quantization_bit
    """
    named = name is not None or bool(adapters) or bits is not None
    if not named and adapter_off_is_start(model_cfg, adapter_cfg, trainable=trainable):
        return None
    if name is not None:
        model_cfg = model_cfg.model_copy(update={
            "model_name_or_path": name, "adapter_name_or_path": adapters, "train_from_scratch": False})
        return model_cfg, quant_cfg.model_copy(update={"quantization_bit": bits})
    if adapters:
        model_cfg = model_cfg.model_copy(update={"adapter_name_or_path": adapters})
    if bits is not None:
        quant_cfg = quant_cfg.model_copy(update={"quantization_bit": bits})
    return model_cfg, quant_cfg


def load_reference(
    model_cfg: ModelConfig, quant_cfg: QuantizationConfig, adapter_cfg: AdapterConfig, *, name: str | None,
    adapters: tuple[str, ...], bits: int | None, trainable: bool, tokenizer: PreTrainedTokenizerBase,
    compute_dtype: torch.dtype, max_length: int,
) -> PackedLM | None:
    """Return the frozen reference; None when it is the policy with its adapter switched off.

    name, adapters, bits  ref_model, ref_model_adapters, ref_model_quantization_bit
    """
    own = own_reference(model_cfg, quant_cfg, adapter_cfg, name=name, adapters=adapters, bits=bits, trainable=trainable)
    if own is None:
        return None
    model_cfg, quant_cfg = own
    model = load_model(model_cfg, quant_cfg, adapter_cfg, tokenizer=tokenizer, trainable=False,
                       compute_dtype=compute_dtype, max_length=max_length)
    reference = PackedLM(model)
    reference.requires_grad_(False)
    return reference
