"""Several adapters on one base, used in turn: the policy's, the value network's, the reward model's, or none.

peft ties `requires_grad` to the active adapter. Here every weight keeps its own flag through a switch, so that two
adapters train in one backward pass and a frozen one stays frozen.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn

from danlu.core.errors import UserError
from danlu.models.base_identity import check_same_base
from danlu.models.quiet import quiet_loading
from danlu.models.source import unreachable

POLICY = "default"


@contextmanager
def using_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run the block with adapter `name`, or with none; which adapter is active and what trains is put back after it."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = model.active_adapter
    try:
        with nullcontext() if name is not None else model.disable_adapter():
            if name is not None and name != before:
                model.set_adapter(name)
            _put_back(flags)
            yield
    finally:
        if name is not None and name != before:
            model.set_adapter(before)
        _put_back(flags)


def add_second_adapter(model: PeftModel, name: str) -> list[nn.Parameter]:
    """Add a trainable adapter shaped like the policy's, with the policy's weights; return its parameters."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with quiet_loading():
        model.add_adapter(name, deepcopy(model.peft_config[POLICY]))
    added = [own for full, own in model.named_parameters() if f".{name}." in full]
    pairs = dict(model.named_parameters())
    with torch.no_grad():
        for full, own in pairs.items():
            if f".{name}." in full:
                own.copy_(pairs[full.replace(f".{name}.", f".{POLICY}.")])
    _put_back(flags)
    for parameter in added:
        parameter.requires_grad_(True)
    return added


def load_second_adapter(model: PeftModel, path: str, name: str, base_name: str) -> None:
    """Put the saved adapter `path` beside the policy's, frozen. Raises UserError for one of another base or shape."""
    check_same_base(path, base_name)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with quiet_loading():
            model.load_adapter(path, name, is_trainable=False, torch_device="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the adapter {path} does not fit the model {base_name}: {str(error).splitlines()[0][:300]}",
                        where=path, fix="name an adapter that was trained on this base") from error
    except (OSError, KeyError, SafetensorError) as error:
        raise unreachable(path, error, path) from error
    for full, parameter in model.named_parameters():
        if f".{name}." in full:
            parameter.requires_grad_(False)
    _put_back(flags)


def copy_adapter_weights(model: PeftModel, path: str, name: str) -> None:
    """Fill adapter `name` with the weights saved at `path`. Raises ValueError when they are of another shape."""
    set_peft_model_state_dict(model, load_peft_weights(path, device="cpu"), adapter_name=name)


def recomputed_alike(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer's forward and of its recomputation, which sees the same adapter."""
    if not isinstance(model, PeftModel) or len(model.peft_config) < 2:
        return nullcontext(), nullcontext()
    return nullcontext(), using_adapter(model, model.active_adapter)


def _put_back(flags: list[tuple[Any, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
