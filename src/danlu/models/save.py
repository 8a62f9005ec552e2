"""Write weights that plain transformers and peft read, and put them back bit for bit. Not atomic: the caller renames.

A folder is whole once `save` returns; the caller writes into a fresh folder beside the final name and renames it.
"""

import copy
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from danlu.core.errors import UserError
from danlu.models import pissa
from danlu.models.actor_critic import VALUE, ActorCritic
from danlu.models.base_identity import write_identity
from danlu.models.card import CardFacts, write_model_card
from danlu.models.config import ModelConfig
from danlu.models.merged import write_merged
from danlu.models.packed_lm import PackedLM
from danlu.models.quiet import quiet_loading
from danlu.models.reward_lm import VALUE_HEAD, RewardLM, load_value_head, save_value_head
from danlu.models.source import local_folder
from danlu.models.tokenizer import adapter_paths
from danlu.templates.base import ChatTemplate

SHARD = "5GB"


class ModelSaver:
    """Saves and restores a policy: an adapter when it has one, the whole model otherwise."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, base_path: str, *,
        facts: CardFacts | None = None, shard_size: str = SHARD,
    ) -> None:
        """Take what is saved beside the weights; `base_path` is the model the run began with."""
        folder = local_folder(base_path)
        self.base = base_path if folder is None else str(folder.resolve())
        self.tokenizer, self.template, self.facts, self.shard_size = tokenizer, template, facts, shard_size

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the base on disk: what a final save is rounded to; float32 when unknown."""
        folder = local_folder(self.base)
        if folder is None or not (folder / "config.json").is_file():
            return torch.float32
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config.get("dtype") or config.get("torch_dtype") or "float32"
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)

    def save(
        self, policy: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, facts: CardFacts | None = None,
    ) -> None:
        """Write weights, config, tokenizer with chat template, and model card into `folder`; see `begin`."""
        self.begin(policy, folder, dtype=dtype, facts=facts)()

    def begin(
        self, policy: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, facts: CardFacts | None = None,
    ) -> Callable[[], None]:
        """Write tokenizer and model card into `folder`; return what writes weights and config, on any thread.

        dtype  None keeps every weight as it trains (what `restore` needs); else a whole model is rounded to it, while
               an adapter stays float32: it is small, and rounding would change its answers
        Raises OSError when the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        model = stock_model(policy)
        if self.template is not None:
            self.tokenizer.chat_template = self.template.jinja(self.tokenizer)
        save_tokenizer(self.tokenizer, folder)
        method = "lora" if isinstance(model, PeftModel) else "full"
        write_model_card(folder, facts or self.facts or CardFacts(base=self.base, method=method))
        return lambda: self._save_weights(policy, model, folder, dtype)

    def _save_weights(
        self, policy: nn.Module, model: PreTrainedModel | PeftModel, folder: Path, dtype: torch.dtype | None,
    ) -> None:
        try:
            if isinstance(model, PeftModel):
                self._save_adapter(model, folder, exact=dtype is None)
            else:
                self._save_model(model, folder, dtype)
            self._save_scorer(unwrapped(policy), folder, exact=dtype is None)
        except SafetensorError as error:
            raise as_os_error(error, folder) from error

    def restore(self, policy: nn.Module, folder: Path) -> None:
        """Load the weights that `save(..., dtype=None)` wrote into an already built policy, bit for bit.

        Raises UserError when the folder holds weights of another shape or method.
        """
        model = stock_model(policy)
        difference = _other_method(model, folder)
        if difference:
            raise _misfit(folder, difference)
        try:
            if isinstance(model, PeftModel):
                _restore_adapter(model, folder)
            else:
                _restore_model(model, folder)
            scorer = unwrapped(policy)
            if isinstance(scorer, RewardLM):
                load_value_head(scorer, folder)
            elif isinstance(scorer, ActorCritic):
                scorer.load_value(folder / VALUE)
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            raise _misfit(folder, str(error).strip().splitlines()[0]) from error

    def _save_scorer(self, policy: nn.Module, folder: Path, *, exact: bool) -> None:
        """Write the head of a reward model; of a policy with a value network the latter, which only training needs."""
        if isinstance(policy, RewardLM):
            save_value_head(policy, folder)
        elif isinstance(policy, ActorCritic) and exact:
            (folder / VALUE).mkdir(exist_ok=True)
            policy.save_value(folder / VALUE)

    def _save_model(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype | None) -> None:
        state = None if dtype is None else cast_state(model.state_dict(), dtype)
        with quiet_loading():
            model.save_pretrained(folder, state_dict=state, max_shard_size=self.shard_size)
        if dtype is not None:
            _write_dtype(folder / "config.json", dtype)
        if model.generation_config is not None:
            settings = copy.deepcopy(model.generation_config)
            settings.eos_token_id = self._stop_ids(settings.eos_token_id)
            settings.save_pretrained(folder)

    def _save_adapter(self, model: PeftModel, folder: Path, *, exact: bool) -> None:
        write_adapter(model, folder, self.base, exact=exact)
        write_identity(self.base, folder)
        write_merged(model, folder)

    def _stop_ids(self, stored: int | list[int] | None) -> int | list[int] | None:
        """Return the ids that end an answer: those of the template, then those the base stops at."""
        if self.template is None:
            return stored
        known = [stored] if isinstance(stored, int) else stored or []
        ids = list(dict.fromkeys([*self.template.stop_token_ids(self.tokenizer), *known]))
        return ids[0] if len(ids) == 1 else ids or None


def write_adapter(model: PeftModel, folder: Path, base: str, *, exact: bool = False) -> None:
    """Write the adapter in peft's two files, as a plain LoRA of `base`; exact keeps beside it how PiSSA trains."""
    settings = copy.deepcopy(model.peft_config["default"])
    settings.inference_mode, settings.base_model_name_or_path = True, base
    state = adapter_state(model)
    if pissa.is_pissa(model):
        if exact:
            pissa.save_raw(model, state, folder)
        state, changes = pissa.plain_lora(model, state)
        for key, value in changes.items():
            setattr(settings, key, value)
    settings.save_pretrained(folder)
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})


def as_os_error(error: SafetensorError, folder: Path) -> OSError:
    """Return the system's error that safetensors wraps in its own; the process edge knows a full disk by its number."""
    return OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error), str(folder))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files. Raises OSError when the disk is full; the library has no type of its own for it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and shutil.disk_usage(folder).free < 2 * len(backend.to_str().encode()):
        raise OSError(errno.ENOSPC, "no space left for the tokenizer", str(folder))
    tokenizer.save_pretrained(folder)


def load_scoring_head(policy: nn.Module, config: ModelConfig, *, needed: bool) -> None:
    """Give a reward model the value head saved with its last adapter or its base; a new run may do without."""
    scorer = unwrapped(policy)
    if not isinstance(scorer, RewardLM):
        return
    source = local_folder((adapter_paths(config) or (str(config.model_name_or_path),))[-1])
    if source is not None and (needed or (source / VALUE_HEAD).is_file()):
        load_value_head(scorer, source)


def unwrapped(policy: nn.Module) -> nn.Module:
    """Return the module inside the distributed wrappers."""
    module: nn.Module = policy
    while isinstance(module, (DistributedDataParallel, DataParallel)):
        module = module.module
    return module


def stock_model(policy: nn.Module) -> PreTrainedModel | PeftModel:
    """Return the transformers or peft model inside danlu's and the distributed wrappers."""
    module = unwrapped(policy)
    if isinstance(module, (RewardLM, ActorCritic)):
        module = module.lm
    if isinstance(module, PackedLM):
        module = module.model
    if not isinstance(module, (PreTrainedModel, PeftModel)):
        raise TypeError(f"{type(module).__name__} is no transformers or peft model")
    return module


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Return the adapter's weights under the names of peft's files."""
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def cast_state(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state in `dtype`; weights that share memory go on sharing it, integers stay."""
    done: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    cast = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride())
        if key not in done:
            done[key] = value.detach().to(dtype) if value.is_floating_point() else value
        cast[name] = done[key]
    return cast


def _write_dtype(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _misfit(folder: Path, difference: str) -> UserError:
    return UserError(
        f"{folder} does not fit the model of this run: {difference}", where="resume_from_checkpoint",
        fix="resume with the model and method keys of the run that wrote it, or start a new output_dir")


def _other_method(model: PreTrainedModel | PeftModel, folder: Path) -> str:
    """Return how the method of a checkpoint differs from that of the model, "" when it does not."""
    path = folder / "adapter_config.json"
    if not folder.is_dir() or path.is_file() != isinstance(model, PeftModel):
        kinds = ("whole weights (finetuning_type full or freeze)", "an adapter (finetuning_type lora)")
        there = kinds[path.is_file()] if folder.is_dir() else "nothing"
        return f"the checkpoint holds {there}, this run trains {kinds[isinstance(model, PeftModel)]}"
    if not isinstance(model, PeftModel):
        return ""
    saved, settings = json.loads(path.read_text(encoding="utf-8")), model.peft_config["default"]
    named = {"lora_target": "target_modules", "additional_target": "modules_to_save", "use_dora": "use_dora"}
    if not pissa.is_pissa(model):  # a PiSSA adapter is saved as a plain one of twice the rank
        named["lora_rank"] = "r"
    pairs = [(key, _shown(saved.get(name)), _shown(getattr(settings, name))) for key, name in named.items()]
    return "; ".join(f"{key} is {old} in the checkpoint and {new} in this run" for key, old, new in pairs if old != new)


def _shown(value: Any) -> str:
    if isinstance(value, (list, set, tuple)):
        return ",".join(sorted(value)) or "unset"
    return str(value or "unset").lower()


def _restore_model(model: PreTrainedModel, folder: Path) -> None:
    # float32 holds every stored format exactly; copying rounds back to what each weight was.
    with quiet_loading():
        saved = type(model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(saved.state_dict(), strict=True)


def _restore_adapter(model: PeftModel, folder: Path) -> None:
    raw = pissa.is_pissa(model)
    state = pissa.restore_raw(model, folder) if raw else load_peft_weights(str(folder), device="cpu")
    expected = adapter_state(model)
    if missing := sorted(set(expected) ^ set(state)):
        raise ValueError(f"these weights are in one of them only: {', '.join(missing[:4])}")
    set_peft_model_state_dict(model, state)
