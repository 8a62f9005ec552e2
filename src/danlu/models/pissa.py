"""PiSSA adapters (Meng et al. 2024): start from the base's largest singular vectors, save as plain LoRA.

The start takes its own part out of the base: W = W_res + s B0 A0 (Eq. 1-4). What training learnt, seen from W, is
s (B A - B0 A0) = s [B, -B0] [A; A0]: a plain LoRA of twice the rank that fits the untouched base.
"""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]

FOLDER = "pissa"
_STARTS: WeakKeyDictionary[PeftModel, State] = WeakKeyDictionary()


def remember_start(model: PeftModel) -> None:
    """Keep a copy of a fresh PiSSA adapter; saving and restoring need it."""
    _STARTS[model] = {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(
        model, save_embedding_layers=False).items() if ".lora_" in name}


def is_pissa(model: PeftModel) -> bool:
    """Return True for an adapter that began as PiSSA in this process."""
    return model in _STARTS


def plain_lora(model: PeftModel, state: State) -> tuple[State, dict[str, Any]]:
    """Return (weights, changed settings) of the plain LoRA that equals this PiSSA adapter on the untouched base."""
    start = _STARTS[model]
    settings = model.peft_config["default"]
    converted = dict(state)
    for name, value in state.items():
        if ".lora_A." in name:
            converted[name] = torch.cat([value.cpu(), start[name].to(value.dtype)], dim=0)
        elif ".lora_B." in name:
            converted[name] = torch.cat([value.cpu(), -start[name].to(value.dtype)], dim=1)
    rank = 2 * settings.r
    # The scale must stay s: alpha / r grows by 2 with r, alpha / sqrt(r) by sqrt(2).
    alpha = settings.lora_alpha * (2**0.5 if settings.use_rslora else 2)
    return converted, {"r": rank, "lora_alpha": alpha, "init_lora_weights": True}


def save_raw(model: PeftModel, state: State, folder: Path) -> None:
    """Write the adapter as it trains and its start, from which `restore_raw` rebuilds it exactly."""
    (folder / FOLDER).mkdir(exist_ok=True)
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(whole, folder / FOLDER / "adapter.safetensors")
    save_file(_STARTS[model], folder / FOLDER / "start.safetensors")


def restore_raw(model: PeftModel, folder: Path) -> State:
    """Return the weights of the adapter as it trained; give the base the remainder that belongs to them."""
    start = load_file(folder / FOLDER / "start.safetensors")
    if any(not torch.equal(value, _STARTS[model][name]) for name, value in start.items()):
        _move_remainder(model, start)
        _STARTS[model] = start
    return load_file(folder / FOLDER / "adapter.safetensors")


def _move_remainder(model: PeftModel, start: State) -> None:
    ours = _STARTS[model]
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or f"{name}.lora_A.weight" not in start:
            continue
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        change = module.scaling["default"] * (ours[b] @ ours[a] - start[b] @ start[a])
        weight = module.get_base_layer().weight
        change = change.T if model.peft_config["default"].fan_in_fan_out else change
        weight.data += change.to(weight.dtype).to(weight.device)
