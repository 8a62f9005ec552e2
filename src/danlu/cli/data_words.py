"""Read the words after a sub-verb of `danlu data` into a Config: `NAME ...`, `--key value`, `key=value`, `--switch`."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from danlu.core.errors import ConfigError, did_you_mean
from danlu.data.clean.recipe import checked

COMMAND_LINE = "command line"
Config = TypeVar("Config", bound=BaseModel)


def read_words(kind: type[Config], argv: Sequence[str], names: Sequence[str]) -> Config:
    """Return the Config of the words; those that belong to no key are the values of `names`, in order.

    The first of `names` takes all words but the last ones when there are more words than names.
    """
    values: dict[str, Any] = {}
    free: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--") and not (equals and key in kind.model_fields):
            free.append(word)
            continue
        if key not in kind.model_fields:
            raise ConfigError(f'unknown key "{key}"', where=COMMAND_LINE, fix=did_you_mean(key, kind.model_fields))
        if not equals:
            value = "true" if kind.model_fields[key].annotation is bool else _next(words, key)
        values[key] = value
    values |= _placed(free, [name for name in names if name not in values])
    config: Config = checked(kind, values, COMMAND_LINE, {})
    return config


def _next(words: list[str], key: str) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"--{key} needs a value", where=COMMAND_LINE)
    return words.pop(0)


def _placed(free: list[str], names: list[str]) -> dict[str, Any]:
    if free and not names:
        raise ConfigError(f'"{free[0]}" belongs to no key', where=COMMAND_LINE, fix="write --key value or key=value")
    if len(free) < len(names):
        return dict(zip(names, free, strict=False))
    more = len(free) - len(names) + 1
    return {names[0]: ",".join(free[:more]), **dict(zip(names[1:], free[more:], strict=True))} if names else {}


def options(kind: type[BaseModel]) -> list[str]:
    """Return one line of help for each key."""
    lines = []
    for key, field in kind.model_fields.items():
        default = "needed" if field.is_required() else repr(field.default)
        lines.append(f"    --{key:<14} {field.description} [{default}]")
    return lines
