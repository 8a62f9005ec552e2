"""Which weights decay and which learn faster: the optimiser's parameter groups. Knows no optimiser."""

import re
from typing import Any

from peft.tuners.lora import Embedding as LoraEmbedding
from torch import nn

Groups = list[dict[str, Any]]

_NORM = re.compile(r"layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)|(?:^|\.)ln_")


def optimizer_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, loraplus_lr_ratio: float | None = None,
    loraplus_lr_embedding: float = 1e-6,
) -> Groups:
    """Return trainable parameters in groups with `params`, `lr` and `weight_decay`.

    Biases and the weights of normalisation layers do not decay. With LoRA+ (Hayou et al. 2024) the matrices B learn
    at lr_B = ratio * lr_A (Section 4), and adapters of embeddings at a rate of their own.
    """
    decaying = decaying_names(model)
    sorted_by: dict[tuple[float, float], list[nn.Parameter]] = {}
    of_embeddings = _embedding_adapters(model) if loraplus_lr_ratio is not None else set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate
        if loraplus_lr_ratio is not None:
            if name in of_embeddings:
                rate = loraplus_lr_embedding
            elif ".lora_B." in name:
                rate = learning_rate * loraplus_lr_ratio
        key = (rate, weight_decay if name in decaying else 0.0)
        sorted_by.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in sorted_by.items()]


def decaying_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay shrinks: all but biases and normalisation weights."""
    of_norms = {f"{name}.{part}" if name else part
                for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)
                for part, _ in module.named_parameters(recurse=False)}
    return {name for name, _ in model.named_parameters()
            if name not in of_norms and "bias" not in name and not _NORM.search(name.lower())}


def _embedding_adapters(model: nn.Module) -> set[str]:
    return {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, LoraEmbedding)
            for part, _ in module.named_parameters()}
