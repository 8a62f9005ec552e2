"""Optimisers by the names of transformers' `optim`: torch's, transformers' Adafactor, and bitsandbytes'."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from danlu.core.console import notice
from danlu.core.errors import CapabilityError, ConfigError, did_you_mean
from danlu.engine.config import EngineConfig

Groups = list[dict[str, Any]]


def default_groups(policy: nn.Module, config: EngineConfig) -> Groups:
    """Return the trainable parameters in two groups: matrices decay, vectors (biases, norms) do not."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: Groups, config: EngineConfig) -> Optimizer:
    """Build the optimiser that `optim` names over parameter groups; `optim_args` fills its further settings."""
    if not any(group["params"] for group in groups):
        raise ConfigError("nothing to train: no parameter requires a gradient",
                          fix="check finetuning_type, lora_target and freeze_trainable_layers")
    name, settings = config.optim, parse_optim_args(config.optim_args)
    if name in _TORCH:
        return _TORCH[name](groups, config, settings)
    if name in _BITSANDBYTES:
        return _bitsandbytes(groups, config, settings)
    raise ConfigError(f'optim "{name}" is not offered', fix=did_you_mean(name, offered()))


def offered() -> tuple[str, ...]:
    """Return every name that `optim` takes."""
    return (*_TORCH, *_BITSANDBYTES)


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """Read `name=value,name=value`; values are numbers, true, false or words."""
    settings: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f'optim_args expects name=value, found "{part}"')
        settings[name] = _value(value)
    return settings


def load_optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore a state dict exactly: torch alone would round a float32 moment to the type of a bfloat16 weight."""
    optimizer.load_state_dict(dict(saved))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in saved["state"].items():
        state = optimizer.state[params[int(index)]]
        for key, value in values.items():
            if isinstance(value, Tensor) and isinstance(state.get(key), Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def _adam(config: EngineConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}


def _build(make: Callable[..., Optimizer], groups: Groups, config: EngineConfig, **kwargs: Any) -> Optimizer:
    try:
        return make(groups, **kwargs)
    except TypeError as error:
        raise ConfigError(f"optim {config.optim} does not take optim_args {config.optim_args!r}: {error}") from error


def _adamw(groups: Groups, config: EngineConfig, settings: dict[str, Any]) -> Optimizer:
    """AdamW in one kernel a group, a fourth of the time of torch's default; `foreach` in optim_args goes first."""
    kernel = {} if "foreach" in settings else {"fused": True}
    return _build(torch.optim.AdamW, groups, config, **_adam(config), **(kernel | settings))


def _plain(name: str) -> Callable[[Groups, EngineConfig, dict[str, Any]], Optimizer]:
    def make(groups: Groups, config: EngineConfig, settings: dict[str, Any]) -> Optimizer:
        return _build(getattr(torch.optim, name), groups, config, lr=config.learning_rate, **settings)

    return make


def _adafactor(groups: Groups, config: EngineConfig, settings: dict[str, Any]) -> Optimizer:
    """Adafactor (Shazeer and Stern, 2018) of transformers, driven by the schedule instead of its own step size."""
    from transformers.optimization import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False} | settings
    return _build(Adafactor, groups, config, lr=config.learning_rate, **fixed)


_TORCH: dict[str, Callable[[Groups, EngineConfig, dict[str, Any]], Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw,
    "adafactor": _adafactor,
    "sgd": _plain("SGD"),
    "adagrad": _plain("Adagrad"),
    "rmsprop": _plain("RMSprop"),
}
# name -> (class in bitsandbytes.optim, bits of the state, paged between CPU and GPU memory)
_BITSANDBYTES: dict[str, tuple[str, int, bool]] = {
    "adamw_bnb_8bit": ("AdamW", 8, False),
    "adamw_8bit": ("AdamW", 8, False),
    "paged_adamw_32bit": ("AdamW", 32, True),
    "paged_adamw_8bit": ("AdamW", 8, True),
    "lion_32bit": ("Lion", 32, False),
    "lion_8bit": ("Lion", 8, False),
    "paged_lion_32bit": ("Lion", 32, True),
    "paged_lion_8bit": ("Lion", 8, True),
    "ademamix": ("AdEMAMix", 32, False),
    "ademamix_8bit": ("AdEMAMix", 8, False),
    "paged_ademamix_32bit": ("AdEMAMix", 32, True),
    "paged_ademamix_8bit": ("AdEMAMix", 8, True),
    "rmsprop_bnb": ("RMSprop", 32, False),
    "rmsprop_bnb_32bit": ("RMSprop", 32, False),
    "rmsprop_bnb_8bit": ("RMSprop", 8, False),
}


@contextmanager
def quiet_optimizer() -> Iterator[None]:
    """Hide bitsandbytes' own line on paging without a GPU; danlu's notice says it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        yield


def _bitsandbytes(groups: Groups, config: EngineConfig, settings: dict[str, Any]) -> Optimizer:
    if find_spec("bitsandbytes") is None:
        raise CapabilityError(f"optim {config.optim} needs bitsandbytes, which is not installed",
                              fix='pip install "danlu[qlora]"')
    import bitsandbytes.optim

    kind, bits, paged = _BITSANDBYTES[config.optim]
    kwargs: dict[str, Any] = {"lr": config.learning_rate, "optim_bits": bits}
    betas = (config.adam_beta1, config.adam_beta2)
    if kind == "AdamW":
        kwargs |= {"betas": betas, "eps": config.adam_epsilon}
    elif kind == "Lion":
        kwargs |= {"betas": betas}
    elif kind == "AdEMAMix":
        kwargs |= {"betas": (*betas, float(settings.pop("beta3", 0.9999))), "eps": config.adam_epsilon}
    if kind != "RMSprop":
        kwargs |= {"is_paged": paged}
    if paged and not torch.cuda.is_available():
        notice(f"optim {config.optim}: without a GPU nothing is paged, the optimiser's state stays in memory")
    return _build(getattr(bitsandbytes.optim, kind), groups, config, **kwargs, **settings)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
