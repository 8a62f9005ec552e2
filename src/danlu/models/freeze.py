"""Choose which weights train without an adapter: all, or those of some layers."""

import re
from collections.abc import Iterable

from torch import nn

from danlu.core.errors import ConfigError, did_you_mean
from danlu.models.config import AdapterConfig

_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<index>\d+)\.(?P<inner>.+)$")


def train_all(model: nn.Module) -> None:
    """Let every weight of the model train."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def train_some_layers(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Freeze all but the chosen modules of the chosen layers; return the names of what trains.

    Raises ConfigError when a number or name matches nothing, naming what there is.
    """
    stack, num_layers = layer_stack(model)
    indices = _chosen_layers(config.freeze_trainable_layers, num_layers)
    inside, outside = _module_names(model, stack)
    modules, extra = config.freeze_trainable_modules, config.freeze_extra_modules
    _check(modules, inside | {"all"}, "freeze_trainable_modules")
    _check(extra, outside, "freeze_extra_modules")
    chosen = []
    for name, parameter in model.named_parameters():
        keep = _in_layers(name, stack, indices, modules) or _is_extra(name, stack, extra)
        parameter.requires_grad_(keep)
        if keep:
            chosen.append(name)
    return chosen


def layer_stack(model: nn.Module) -> tuple[str, int]:
    """Return the name of the largest list of layers and how many it holds, e.g. ("model.layers", 32)."""
    stacks = {name: len(module) for name, module in model.named_modules()
              if isinstance(module, nn.ModuleList) and "." not in _after_first_index(name)}
    if not stacks:
        raise ConfigError("this model has no list of layers, so finetuning_type: freeze cannot choose among them",
                          where="finetuning_type", fix="use finetuning_type: lora or full")
    stack = max(stacks, key=lambda name: sum(p.numel() for p in model.get_submodule(name).parameters()))
    return stack, stacks[stack]


def _after_first_index(name: str) -> str:
    found = re.search(r"\.\d+(\..*)?$", name)
    return (found.group(1) or "") if found else ""


def _chosen_layers(count: int, num_layers: int) -> range:
    if abs(count) > num_layers:
        raise ConfigError(f"{abs(count)} layers are asked for, the model has {num_layers}",
                          where="freeze_trainable_layers", fix=f"choose a number from 1 to {num_layers}")
    return range(num_layers - count, num_layers) if count > 0 else range(-count)


def _module_names(model: nn.Module, stack: str) -> tuple[set[str], set[str]]:
    inside: set[str] = set()
    outside: set[str] = set()
    for name, _ in model.named_parameters():
        parts = name.split(".")[:-1]
        if name.startswith(stack + "."):
            inside.update(parts[len(stack.split(".")) + 1:])
        else:
            outside.update(parts)
    inside = {name for name in inside if not name.isdigit()}
    return inside, outside - set(stack.split("."))


def _in_layers(name: str, stack: str, indices: Iterable[int], modules: tuple[str, ...]) -> bool:
    if not name.startswith(stack + "."):
        return False
    index, *parts = name[len(stack) + 1:].split(".")
    return int(index) in indices and ("all" in modules or any(module in parts for module in modules))


def _is_extra(name: str, stack: str, extra: tuple[str, ...]) -> bool:
    return not name.startswith(stack + ".") and any(module in name.split(".") for module in extra)


def _check(names: tuple[str, ...], known: set[str], key: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f'no module is called "{name}" there', where=key, fix=did_you_mean(name, known))
