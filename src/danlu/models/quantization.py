"""Store the frozen base in 4 or 8 bits with bitsandbytes (QLoRA, Dettmers et al. 2023), on GPU and CPU."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from danlu.core.console import notice
from danlu.core.errors import CapabilityError, ConfigError
from danlu.models.config import AdapterConfig, QuantizationConfig


def quantization_settings(
    quant_cfg: QuantizationConfig, adapter_cfg: AdapterConfig, model_config: Any, *, trainable: bool,
    compute_dtype: torch.dtype,
) -> BitsAndBytesConfig | None:
    """Return the settings to load with, or None for a base in full precision or one stored quantised already.

    Raises ConfigError when full or freeze training is asked of a quantised base.
    """
    stored = stored_quantization(model_config)
    if stored is None and quant_cfg.quantization_bit is None:
        return None
    _check_method(adapter_cfg, trainable, "quantization_bit" if stored is None else "model_name_or_path")
    if stored is not None:
        _check_library(stored)
        if quant_cfg.quantization_bit is not None:
            notice(f"the model is stored quantised ({stored}) already; quantization_bit has no effect")
        return None
    _check_library("bitsandbytes")
    if quant_cfg.quantization_bit == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_cfg.quantization_type,
        bnb_4bit_use_double_quant=quant_cfg.double_quantization, bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8)


def stored_quantization(model_config: Any) -> str | None:
    """Return the method a checkpoint is stored quantised with, or None."""
    stored = getattr(model_config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def keep_packing(model: nn.Module) -> None:
    """Keep 4-bit weights as they were stored, also where bitsandbytes would repack them for the processor.

    On AVX512-BF16 processors its first evaluation forward rounds the scales to bfloat16, for good: an evaluation in the
    middle of a run would change what is trained, and an answer would come from other weights than the trained ones. It
    also fails on matrices narrower than a block of 64. The price: its 4-bit product for such processors is not used.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Return True when some weights of the model are packed integers."""
    return any(is_packed(parameter) or parameter.dtype == torch.int8 for parameter in model.parameters())


def is_packed(parameter: torch.Tensor) -> bool:
    """Return True for a bitsandbytes 4-bit weight: two values in each byte."""
    return type(parameter).__name__ == "Params4bit"


def _check_method(adapter_cfg: AdapterConfig, trainable: bool, where: str) -> None:
    if trainable and adapter_cfg.finetuning_type != "lora":
        raise ConfigError(
            f"finetuning_type: {adapter_cfg.finetuning_type} cannot train quantised weights", where=where,
            fix="set finetuning_type: lora, or leave quantization_bit out")
    if trainable and adapter_cfg.pissa_init:
        raise ConfigError(
            "pissa_init takes singular vectors of the base weights, and these are quantised", where=where,
            fix="leave out pissa_init or quantization_bit")


def _check_library(method: str) -> None:
    if method == "bitsandbytes" and find_spec("bitsandbytes") is None:
        raise CapabilityError("quantised training needs bitsandbytes, which is not installed",
                              where="quantization_bit", fix='pip install "danlu[qlora]"')
