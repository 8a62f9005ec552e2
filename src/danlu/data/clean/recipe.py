"""A recipe: which rows are read, which rules they go through in which order, where the result goes.

    input: raw.jsonl
    output: clean.jsonl
    filters:
      - unicode                        # a rule by name, with its defaults
      - length: {min_chars: 10}        # or with options
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from danlu.core.config import StrictConfig
from danlu.core.config_file import Entry, read_entries
from danlu.core.errors import ConfigError, did_you_mean
from danlu.core.key_types import CommaList
from danlu.data.clean.filter import FILTERS, Filter
from danlu.data.clean.output import default_ledger

COMMAND_LINE = "command line"


class CleanConfig(StrictConfig):
    """The keys of a recipe beside its filters."""

    input: CommaList = Field(min_length=1, description="Files, folders or names of dataset_info.json, comma separated.")
    output: str = Field(min_length=1, description="File of JSON lines to write.")
    ledger: str | None = Field(None, description="File for the ledger; unset: `_NAME.ledger.jsonl` beside it.")
    dataset_dir: str = Field("data", description="Folder of dataset_info.json.")
    columns: CommaList = Field((), description="Columns that hold text; unset: found by their usual names.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read stops the run, or is dropped and listed.")
    num_workers: int | None = Field(None, ge=1, description="Processes; unset: all cores, one for small data.")
    examples: int = Field(3, ge=0, description="Examples of what each rule did, in the table and the ledger.")
    list_changed: bool = Field(True, description="List every changed row in the ledger; dropped ones always are.")
    overwrite: bool = Field(False, description="Replace an output that exists.")

    @property
    def ledger_path(self) -> Path:
        """Where the ledger goes."""
        return Path(self.ledger) if self.ledger else default_ledger(Path(self.output))


class Recipe(StrictConfig):
    """A checked recipe: keys, and rules with the names they have in the ledger."""

    config: CleanConfig
    filters: tuple[tuple[str, Any], ...]

    @property
    def rules(self) -> list[str]:
        """The names of the rules in order."""
        return [name for name, _ in self.filters]


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe of a file; `key=value` words replace its keys. Errors: ConfigError with the place."""
    entries = {entry.key: entry for entry in read_entries(path)}
    entries |= {entry.key: entry for entry in _overrides(list(overrides))}
    listed = entries.pop("filters", None)
    for entry in entries.values():
        if entry.key not in CleanConfig.model_fields:
            raise ConfigError(f'unknown key "{entry.key}"', where=entry.where,
                              fix=did_you_mean(entry.key, [*CleanConfig.model_fields, "filters"]))
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        raise ConfigError("filters: a list of rules is needed", where=listed.where if listed else str(path),
                          fix=f"rules: {', '.join(FILTERS)}")
    filters = [_filter(item, f"{listed.where}: filters[{number}]") for number, item in enumerate(listed.value, 1)]
    places = {key: entry.where for key, entry in entries.items()}
    config = checked(CleanConfig, {key: entry.value for key, entry in entries.items()}, str(path), places)
    return Recipe(config=config, filters=_numbered(filters))


def _overrides(words: list[str]) -> Iterator[Entry]:
    """Yield the entries of `key=value`, `--key value` and `--switch`."""
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals and not word.startswith("--"):
            raise ConfigError(f'"{word}" belongs to no key', where=COMMAND_LINE, fix="write key=value")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        yield Entry(key.replace("-", "_"), _yaml_value(word, value), COMMAND_LINE)


def _yaml_value(word: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {word} is no YAML", where=COMMAND_LINE) from None


def _filter(item: Any, where: str) -> tuple[str, Filter]:
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or len(item) != 1 or not isinstance(next(iter(item)), str):
        raise ConfigError(f"expected a name, or `name: {{option: value}}`, found {item!r}", where=where,
                          fix="one rule an element of the list; options indented below its name")
    name, options = next(iter(item.items()))
    if name not in FILTERS:
        raise ConfigError(f'unknown filter "{name}"', where=where, fix=did_you_mean(name, FILTERS))
    if options is not None and not isinstance(options, dict):
        raise ConfigError(f"options of {name} are `option: value` pairs, found {options!r}", where=where)
    return name, checked(FILTERS[name], options or {}, f"{where} {name}", {})


def _numbered(filters: list[tuple[str, Filter]]) -> tuple[tuple[str, Filter], ...]:
    """Return names that differ: a rule used twice becomes `length` and `length 2`."""
    seen: dict[str, int] = {}
    named = []
    for name, rule in filters:
        seen[name] = seen.get(name, 0) + 1
        named.append((f"{name} {seen[name]}" if seen[name] > 1 else name, rule))
    return tuple(named)


def checked(kind: type[Any], values: dict[str, Any], where: str, places: dict[str, str]) -> Any:
    """Return `kind(**values)`. Errors: ConfigError with the place of each wrong value and the closest known key."""
    for key in values:
        if key not in kind.model_fields:
            raise ConfigError(f'unknown option "{key}"', where=places.get(key, where),
                              fix=did_you_mean(str(key), kind.model_fields))
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_told(one, where, places) for one in error.errors()),
                          fix=f"keys: {', '.join(kind.model_fields)}") from None


def _told(error: Any, where: str, places: dict[str, str]) -> str:
    key = ".".join(map(str, error["loc"]))
    place = places.get(str(error["loc"][0]) if error["loc"] else "", where)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place}: {key} is needed"
    found = f", found {error['input']!r}" if key else ""
    return f"{place}: {key + ': ' if key else ''}{message[:1].lower() + message[1:]}{found}"
