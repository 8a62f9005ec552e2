"""Make a base model from scratch: an architecture, random weights under a seed, a tokenizer; ready for pre-training."""

import json
import re
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from danlu.core.errors import ConfigError, UserError, did_you_mean
from danlu.models.config import ModelConfig
from danlu.models.new_config import NewConfig
from danlu.models.new_tokenizer import blank_tokenizer, train_tokenizer
from danlu.models.quiet import quiet_loading
from danlu.models.save import as_os_error, save_tokenizer
from danlu.models.tokenizer import load_tokenizer
from danlu.models.vocabulary import highest_id
from danlu.templates.base import TEMPLATES

_CONTROL = re.compile(r"<\|[^|<>\s]+\|>")


@dataclass(frozen=True, slots=True)
class NewModel:
    """What was written."""

    folder: Path
    architecture: str
    parameters: int
    vocabulary: int


def presets() -> dict[str, dict[str, Any]]:
    """Return the architectures by name."""
    text = (files("danlu.models") / "presets.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded


def create_base(config: NewConfig) -> NewModel:
    """Write a random model and its tokenizer to `output_dir`, whole or not at all.

    Raises UserError for an unknown preset, a key the architecture does not have, a folder in use, a missing file.
    """
    folder = Path(config.output_dir).expanduser()
    _check_free(folder, config.overwrite_output_dir)
    settings = architecture(config)
    tokenizer = _tokenizer(config, settings)
    model_config = build_config(settings, tokenizer)
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).to(getattr(torch, config.dtype))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with quiet_loading():
            model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
    except SafetensorError as error:
        raise as_os_error(error, folder) from error
    finally:
        if not (partial / "tokenizer_config.json").is_file():
            shutil.rmtree(partial, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return NewModel(folder, config.architecture, model.num_parameters(), highest_id(tokenizer) + 1)


def architecture(config: NewConfig) -> dict[str, Any]:
    """Return the transformers settings of a preset or config file, with the user's changes."""
    path = Path(config.architecture).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        settings = _read_config(path)
    elif config.architecture in presets():
        settings = presets()[config.architecture]
    else:
        raise ConfigError(f'no preset or file is called "{config.architecture}"', where="architecture",
                          fix=did_you_mean(config.architecture, presets()))
    model_type = settings.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"model_type {model_type} is unknown to transformers", where=str(path),
                          fix="set model_type to an architecture that transformers has")
    known = set(CONFIG_MAPPING[model_type]().to_dict()) | set(CONFIG_MAPPING[model_type].attribute_map) | {"rope_theta"}
    for key in config.config_overrides:
        if key not in known:
            raise ConfigError(f'a {model_type} config has no key "{key}"', where="config_overrides",
                              fix=did_you_mean(key, known, list_all=False))
    return {**settings, **config.config_overrides}


def build_config(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Return the model's config for this tokenizer: as many rows as tokens, and its special ids."""
    values = {
        **settings, "vocab_size": highest_id(tokenizer) + 1, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model_type = values.pop("model_type")
    _check_heads(values)
    try:
        return AutoConfig.for_model(model_type, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transformers refuses this architecture: {str(error).splitlines()[0]}",
                          where="architecture", fix="check config_overrides") from error


def _check_heads(values: dict[str, Any]) -> None:
    hidden = values.get("hidden_size", values.get("n_embd"))
    heads = values.get("num_attention_heads", values.get("n_head"))
    keys = values.get("num_key_value_heads")
    if hidden and heads and not values.get("head_dim") and hidden % heads:
        raise ConfigError(f"hidden size {hidden} is no multiple of {heads} attention heads", where="config_overrides",
                          fix=f"choose a hidden size such as {hidden // heads * heads}, or set head_dim")
    if heads and keys and heads % keys:
        raise ConfigError(f"{heads} attention heads cannot share {keys} key and value heads evenly",
                          where="config_overrides", fix=f"set num_key_value_heads to a divisor of {heads}")


def _tokenizer(config: NewConfig, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    if config.tokenizer_name_or_path is not None:
        tokenizer = load_tokenizer(
            ModelConfig.model_validate({"model_name_or_path": config.tokenizer_name_or_path}))
        special = [*config.special_tokens, *template_tokens(config.template, tokenizer)]
        tokenizer.add_tokens([token for token in special if token not in tokenizer.get_vocab()], special_tokens=True)
    else:
        special = [*config.special_tokens, *template_tokens(config.template, blank_tokenizer())]
        tokenizer = train_tokenizer(
            config.tokenizer_corpus, config.vocab_size or settings["vocab_size"], text_column=config.text_column,
            special_tokens=special, max_length=settings.get("max_position_embeddings", settings.get("n_positions")))
    if config.template is not None:
        TEMPLATES[config.template].prepare_tokenizer(tokenizer)
    return tokenizer


def template_tokens(name: str | None, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the control tokens that a named template writes, such as <|im_start|>: each must be one token."""
    if name is None:
        return []
    template = TEMPLATES[name]
    written = [*template.stop_strings(tokenizer), *_CONTROL.findall(template.jinja(tokenizer))]
    return list(dict.fromkeys(written))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"broken JSON: {error}", where=str(path), fix="mend it") from error
    if not isinstance(loaded, dict):
        raise ConfigError("a config is a JSON object", where=str(path), fix="name a transformers config.json")
    return {key: value for key, value in loaded.items()
            if key not in ("architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype")}


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", where="output_dir", fix="name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} holds files already", where="output_dir",
                        fix="name another folder, or set overwrite_output_dir: true to replace it")
