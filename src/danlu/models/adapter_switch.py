"""Several adapters on one base, used in turn: the policy's, the value network's, the reward model's, or none.

peft ties `requires_grad` to the active adapter. Here every weight keeps its own flag through a switch, so that two
adapters train in one backward pass and a frozen one stays frozen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from danlu.core.errors import UserError
from danlu.models.base_identity import check_same_base
from danlu.models.quiet import quiet_loading
from danlu.models.source import unreachable

POLICY = "default"
SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
"""Settings without which the same weights are another adapter."""


@contextmanager
def using_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run the block with adapter `name`, or with none; which adapter is active and what trains is put back after it."""
    flags, before = _flags(model), model.active_adapter
    try:
        if name is not None:
            switch_adapter(model, name)
        with nullcontext() if name is not None else model.disable_adapter():
            _put_back(flags)
            yield
    finally:
        if name is not None:
            switch_adapter(model, before)
        _put_back(flags)


def switch_adapter(model: PeftModel, name: str) -> None:
    """Make adapter `name` the active one; every weight keeps its flag."""
    if name == model.active_adapter:
        return
    flags = _flags(model)
    model.set_adapter(name)
    _put_back(flags)


def add_second_adapter(model: PeftModel, name: str) -> list[nn.Parameter]:
    """Add a trainable adapter shaped like the policy's, with the policy's weights; return its parameters."""
    flags, settings = _flags(model), deepcopy(model.peft_config[POLICY])
    settings.init_lora_weights = True  # PiSSA would take its start out of the base a second time
    with quiet_loading():
        model.add_adapter(name, settings)
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
    flags = _flags(model)
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
    """Fill adapter `name` with the weights saved at `path`. Raises ValueError, and copies none, unless all fit."""
    saved, own = PeftConfig.from_pretrained(path), model.peft_config[name]
    for key in SCALING:
        here, there = getattr(own, key), getattr(saved, key, None)
        if here != there:
            raise ValueError(f"{key} is {there} there and {here} here")
    state = load_peft_weights(path, device="cpu")
    check_same_shapes(state, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    set_peft_model_state_dict(model, state, adapter_name=name)


def check_same_shapes(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both hold tensors of the same names and shapes."""
    if odd := sorted(saved.keys() ^ own.keys()):
        raise ValueError(f"{odd[0]} is in one of them only")
    for name, value in saved.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here")


class Recomputation:
    """The adapter of what gradient checkpointing computes again in backward: that of its forward.

    Without it a value computed with its own adapter would be computed again with the policy's, which is active by
    then. Switching visits every layer, so it is done once for each stretch of layers, and undone when the pass ends:
    all that is computed again, the vocabulary head too, asks the one object of its model.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = ref(model)
        self._before: str | None = None

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a forward and of its recomputation (`context_fn` of torch's checkpoint)."""
        return nullcontext(), self._with(self._peft().active_adapter)

    def _peft(self) -> PeftModel:
        model = self._model()
        assert model is not None, "the model is gone before what it computes"
        return model

    @contextmanager
    def _with(self, name: str) -> Iterator[None]:
        model = self._peft()
        if model.active_adapter != name:
            if self._before is None:
                self._before = model.active_adapter
                torch.autograd.Variable._execution_engine.queue_callback(self._put_back)
            switch_adapter(model, name)
        yield

    def _put_back(self) -> None:
        assert self._before is not None
        switch_adapter(self._peft(), self._before)
        self._before = None


_RECOMPUTATIONS: WeakKeyDictionary[PeftModel, Recomputation] = WeakKeyDictionary()


def recomputation_contexts(model: nn.Module) -> Callable[[], Any]:
    """Return the `context_fn` of torch's checkpoint for a part of `model`."""
    if not isinstance(model, PeftModel):
        nothing: Callable[[], Any] = noop_context_fn
        return nothing
    return _RECOMPUTATIONS.setdefault(model, Recomputation(model)).contexts


def _flags(model: nn.Module) -> list[tuple[Any, bool]]:
    return [(parameter, parameter.requires_grad) for parameter in model.parameters()]


def _put_back(flags: list[tuple[Any, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
