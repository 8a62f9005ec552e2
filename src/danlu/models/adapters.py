"""Low-rank adapters through peft: new ones, loaded ones, merged ones (LoRA, Hu et al. 2021)."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from danlu.core.console import notice, say
from danlu.core.errors import ConfigError, UserError, did_you_mean
from danlu.models.base_identity import check_same_base
from danlu.models.config import AdapterConfig
from danlu.models.merged import check_merged, remember_merged
from danlu.models.pissa import remember_start
from danlu.models.quantization import is_quantized
from danlu.models.quiet import quiet_loading
from danlu.models.source import local_folder, unreachable

# One name for what a native architecture keeps in three projections; old recipes still say it.
FUSED_PROJECTIONS = {"W_pack": ("q_proj", "k_proj", "v_proj"), "query_key_value": ("q_proj", "k_proj", "v_proj")}


def linear_names(model: nn.Module) -> list[str]:
    """Return the short names of all linear layers but the output head, as `lora_target` takes them."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            parts = name.split(".")
            names.add(".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1])
    return sorted(names)


def apply_adapters(
    model: PreTrainedModel, config: AdapterConfig, paths: tuple[str, ...], *, trainable: bool, base_name: str,
    trained_in_full: tuple[str, ...] = (),
) -> PreTrainedModel | PeftModel:
    """Put adapters on the base: all but the last of `paths` merged, the last kept; a new one where asked or needed.

    trained_in_full  modules that must train beside a new adapter, resized embeddings for instance
    Raises UserError for an adapter of another base and for names that match no module.
    """
    starts_new = trainable and config.finetuning_type == "lora" and (config.create_new_adapter or not paths)
    kept = None if starts_new or not paths else paths[-1]
    merged = paths if kept is None else paths[:-1]
    for place, path in enumerate(paths):
        check_merged(path, paths[:place])
    for path in merged:
        model = _merge(model, path, base_name)
    if kept is not None:
        adapted = load_adapter(model, kept, base_name, trainable=trainable, pure_bf16=config.pure_bf16)
    elif starts_new:
        adapted = new_adapter(model, config, base_name, trained_in_full)
    else:
        return model
    remember_merged(adapted, merged)
    return adapted


def new_adapter(
    model: PreTrainedModel, config: AdapterConfig, base_name: str, trained_in_full: tuple[str, ...] = (),
) -> PeftModel:
    """Return the base with one fresh trainable adapter; B starts at zero, so nothing changes at first."""
    whole = tuple(dict.fromkeys((*_additional(model, config), *trained_in_full)))
    targets = resolve_targets(model, config.lora_target)
    conv1d = any(isinstance(module, Conv1D) for name, module in model.named_modules() if _matches(name, targets))
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=config.lora_rank, lora_alpha=config.alpha, lora_dropout=config.lora_dropout,
        target_modules=list(targets), modules_to_save=list(whole) or None, use_rslora=config.use_rslora,
        use_dora=config.use_dora, fan_in_fan_out=conv1d, init_lora_weights=_initialisation(config),
        ensure_weight_tying=_ties(model, whole))
    with quiet_loading():
        adapted = get_peft_model(model, settings, autocast_adapter_dtype=not config.pure_bf16)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    _cast_trainable(adapted, torch.bfloat16 if config.pure_bf16 else torch.float32)
    if config.pissa_init:
        remember_start(adapted)
    return adapted


def load_adapter(
    model: PreTrainedModel, path: str, base_name: str, *, trainable: bool, pure_bf16: bool = False,
) -> PeftModel:
    """Return the base with the saved adapter on it; refuse one that was trained on another base."""
    check_same_base(path, base_name)
    try:
        with quiet_loading():
            adapted = PeftModel.from_pretrained(
                model, path, is_trainable=trainable, autocast_adapter_dtype=not pure_bf16, torch_device="cpu")
    except (RuntimeError, ValueError) as error:
        raise _wrong_base(path, base_name, error) from error
    except (OSError, KeyError, SafetensorError) as error:
        raise unreachable(path, error, "adapter_name_or_path") from error
    _check_all_loaded(adapted, path, base_name)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    _cast_trainable(adapted, torch.bfloat16 if pure_bf16 else torch.float32)
    return adapted


def resolve_targets(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules that get an adapter; `all` and historic names become what this model has."""
    known = linear_names(model)
    if "all" in names:
        return tuple(known)
    resolved: list[str] = []
    for name in names:
        parts = FUSED_PROJECTIONS.get(name, ())
        if any(_matches(module, (name,)) for module, _ in model.named_modules()):
            resolved.append(name)
        elif parts and all(part in known for part in parts):
            notice(f"lora_target {name}: this model keeps it apart, as {', '.join(parts)}; these get the adapter")
            resolved.extend(parts)
        else:
            raise ConfigError(f'no module of this model is called "{name}"', where="lora_target",
                              fix=did_you_mean(name, known) + "; or all")
    return tuple(dict.fromkeys(resolved))


def _merge(model: PreTrainedModel, path: str, base_name: str) -> PreTrainedModel:
    if is_quantized(model):
        raise ConfigError(
            f"{path} cannot be merged into a quantised base without loss", where="adapter_name_or_path",
            fix="name one adapter only, or merge with `danlu export` first and start from its result")
    merged: PreTrainedModel = load_adapter(model, path, base_name, trainable=False).merge_and_unload()
    say(f"merged adapter {path} into the base")
    return merged


def _matches(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith("." + name) for name in names)


def _additional(model: nn.Module, config: AdapterConfig) -> tuple[str, ...]:
    known = {name.split(".")[-1] for name, module in model.named_modules()
             if next(module.parameters(), None) is not None and name and not name.split(".")[-1].isdigit()}
    for name in config.additional_target:
        if not any(_matches(module, (name,)) for module, _ in model.named_modules()):
            raise ConfigError(f'no module of this model is called "{name}"', where="additional_target",
                              fix=did_you_mean(name, known))
    return config.additional_target


def _initialisation(config: AdapterConfig) -> bool | str:
    if not config.pissa_init:
        return True
    return "pissa" if config.pissa_iter == -1 else f"pissa_niter_{config.pissa_iter}"


def _ties(model: PreTrainedModel, whole: tuple[str, ...]) -> bool:
    """Return True when embedding and head share one matrix and one of them trains: they must go on sharing it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    tied = (head, embedding)
    return any(module in tied and _matches(name, whole) for name, module in model.named_modules())


def _cast_trainable(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _check_all_loaded(model: PeftModel, path: str, base_name: str) -> None:
    """Refuse an adapter with weights for layers that the model does not have, or without some it needs."""
    file = (local_folder(path) or Path(path)) / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        stored = set(tensors.keys())
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    odd = sorted(needed - stored) + sorted(name for name in stored - needed if ".lora_" in name)
    if odd:
        raise _wrong_base(path, base_name, ValueError(f"{odd[0]} is in one of them only"))


def _wrong_base(path: str, base_name: str, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in lines if "size mismatch" in line or "not found" in line), lines[0] if lines else "")
    return UserError(f"the adapter {path} does not fit the model {base_name}: {detail[:300]}",
                     where="adapter_name_or_path", fix="set model_name_or_path to the base the adapter was trained on")
