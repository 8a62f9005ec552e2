"""`danlu new OUT --architecture llama-2m --tokenizer_corpus FILE ...`: make a base model from scratch."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from danlu.core.config_file import read_entries
from danlu.core.errors import ConfigError, did_you_mean
from danlu.models.new_config import NewConfig

USAGE = """usage: danlu new OUT [--key value ...] [key=value ...]
       danlu new FILE.yaml [key=value ...]

Writes a model with random weights and a tokenizer, ready for `stage: pt`. Keys that are no key of danlu new, such as
--hidden_size, change the architecture (config_overrides).
"""
SHORT = {
    "out": "output_dir", "arch": "architecture", "train_tokenizer_on": "tokenizer_corpus",
    "tokenizer_file": "tokenizer_name_or_path", "tokenizer": "tokenizer_name_or_path",
}
LISTS = ("tokenizer_corpus", "special_tokens")
SWITCHES = ("overwrite_output_dir",)


def main(argv: Sequence[str]) -> int:
    """Check the keys without torch, then build and write the model."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_config(argv)
    # Imported here so that a mistake in the keys is told at once.
    from danlu.models.new import create_base

    made = create_base(config)
    print(f"{made.folder}: {made.architecture}, {made.parameters:,} parameters, {made.vocabulary:,} tokens")
    return 0


def read_config(argv: Sequence[str]) -> NewConfig:
    """Return the checked keys of a file and of the command line, which wins."""
    values: dict[str, Any] = {}
    words = list(argv)
    if words and not words[0].startswith("-") and ("=" not in words[0]):
        first = words.pop(0)
        if first.lower().endswith((".yaml", ".yml", ".json")):
            values = {SHORT.get(one.key, one.key): one.value for one in read_entries(Path(first))}
        else:
            values = {"output_dir": first}
    values |= _from_words(words)
    return _checked(values)


def _from_words(words: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        if not equals and not name.startswith("--"):
            raise ConfigError(f'"{words[at]}" belongs to no key', where="command line",
                              fix="write --key value or key=value")
        key = SHORT.get(_plain(name), _plain(name))
        at += 1
        taken = [value] if equals else []
        while not equals and at < len(words) and not words[at].startswith("--") and _takes(key, words[at], taken):
            taken.append(words[at])
            at += 1
        values[key] = _value(key, taken)
    return values


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _takes(key: str, word: str, taken: list[str]) -> bool:
    return not taken or (key in LISTS and "=" not in word)


def _value(key: str, taken: list[str]) -> Any:
    if not taken:
        return True if key in SWITCHES else ""
    if key in LISTS:
        return tuple(part for word in taken for part in word.split(",") if part)
    if key in NewConfig.model_fields and key != "config_overrides":
        return taken[0]
    try:
        return json.loads(taken[0])
    except json.JSONDecodeError:
        return taken[0]


def _checked(values: dict[str, Any]) -> NewConfig:
    """Sort keys of the architecture into config_overrides and check the rest."""
    own = {key: value for key, value in values.items() if key in NewConfig.model_fields}
    other = {key: value for key, value in values.items() if key not in NewConfig.model_fields}
    for key in other:
        hint = did_you_mean(key, NewConfig.model_fields, list_all=False)
        if hint:
            raise ConfigError(f'unknown key "{key}"', where="danlu new", fix=hint)
    if other:
        own["config_overrides"] = {**own.get("config_overrides", {}), **other}
    try:
        return NewConfig(**own)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'danlu new'}: {one['msg'].removeprefix('Value error, ')}"
                 + (f", found {one['input']!r}" if one["loc"] and one["type"] != "missing" else "")
                 for one in error.errors()]
        raise ConfigError("\n".join(lines), fix="danlu new --help lists the keys") from None


def _help() -> str:
    lines = [USAGE]
    for key, field in NewConfig.model_fields.items():
        lines.append(f"  --{key:<24} {field.description}")
    lines.append("\nShort forms: " + ", ".join(f"--{short} = --{key}" for short, key in SHORT.items()))
    return "\n".join(lines)
