"""Load the tokenizer that belongs to a model, with the tokens the user adds. Knows nothing of chat templates."""

from pathlib import Path

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from danlu.core.console import notice
from danlu.core.errors import UserError
from danlu.models.config import ModelConfig
from danlu.models.convert import conversion_of
from danlu.models.source import (
    TOKENIZER_FILES,
    check_adapter_source,
    check_tokenizer_source,
    has_any,
    local_folder,
    unreachable,
)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the last adapter when it carries one, else that of the base.

    Raises UserError for a missing or wrong folder, and for one whose files cannot be read.
    """
    name = _adapter_with_tokenizer(config) or check_tokenizer_source(
        _required(config), cache_dir=config.cache_dir)
    tokenizer = _read(name, config)
    add_tokens(tokenizer, config)
    return tokenizer


def _read(name: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    old = None if config.trust_remote_code else conversion_of(name)
    if old is not None and not (old[1] / "tokenizer.json").is_file():
        conversion, folder, raw = old
        converted = conversion.tokenizer(folder, raw)
        converted.name_or_path, converted.split_special_tokens = str(folder), config.split_special_tokens
        return converted
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, cache_dir=config.cache_dir, revision=config.model_revision, token=config.hf_hub_token,
            trust_remote_code=config.trust_remote_code,
            split_special_tokens=config.split_special_tokens)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(name, error) from error
    return tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> int:
    """Add the ordinary and special tokens that the configuration names; return how many are new."""
    added = 0
    described = tuple(token_descriptions(config))
    for tokens, special in ((config.add_tokens, False), ((*config.add_special_tokens, *described), True)):
        if not tokens:
            continue
        new = tokenizer.add_tokens(list(tokens), special_tokens=special)
        kind = "special tokens" if special else "tokens"
        notice(f"{new} of {len(tokens)} {kind} are new to the tokenizer: {', '.join(tokens)}")
        added += new
    return added


def token_descriptions(config: ModelConfig) -> dict[str, str]:
    """Return the new special tokens and what they mean, from new_special_tokens_config; {} without it.

    Raises UserError when the file is missing or is no map of tokens to descriptions.
    """
    if config.new_special_tokens_config is None:
        return {}
    path = Path(config.new_special_tokens_config).expanduser()
    key, fix = "new_special_tokens_config", 'write one `"<token>": "what it means"` a line'
    if not path.is_file():
        raise UserError(f"file {path} does not exist", where=key, fix="check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}", where=key, fix=fix) from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"{path} is no map of tokens to descriptions", where=key, fix=fix)
    return {str(token): text for token, text in content.items()}


def adapter_paths(config: ModelConfig) -> tuple[str, ...]:
    """Return the adapters' names with `adapter_folder` in front of the relative ones, each checked."""
    names = config.adapter_name_or_path
    if config.adapter_folder is not None:
        names = tuple(str(Path(config.adapter_folder) / name) for name in names)
    return tuple(check_adapter_source(name) for name in names)


def _required(config: ModelConfig) -> str:
    if not config.model_name_or_path:
        raise UserError("no model is named", where="model_name_or_path",
                        fix="set model_name_or_path to a model folder or hub id")
    return config.model_name_or_path


def _adapter_with_tokenizer(config: ModelConfig) -> str | None:
    paths = adapter_paths(config)
    folder = local_folder(paths[-1]) if paths else None
    if folder is None or not has_any(folder, TOKENIZER_FILES):
        return None
    return str(folder)


def _unreadable(name: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"the tokenizer of {name} comes as Python code", where="model_name_or_path",
            fix="read that code and set trust_remote_code: true if you trust it, or use a folder with tokenizer.json")
    return unreachable(name, error)
