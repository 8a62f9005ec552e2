"""Words that name data sets: `NAME|PATH ...`, the sub-verb's own options, and keys of a run (lint, show, stats)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danlu.core.config_file import SUFFIXES
from danlu.core.console import notice
from danlu.core.errors import ConfigError
from danlu.core.resolve import resolve
from danlu.run_config import RunConfig, build_run_config

COMMAND_LINE = "command line"
SHORT = {"model": "model_name_or_path", "tokenizer": "model_name_or_path"}
YAML = tuple(one for one in SUFFIXES if one != ".json")


@dataclass(slots=True)
class Words:
    """What was written: data sets, own options and switches, a configuration file, and entries for its keys."""

    names: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)
    path: str | None = None
    entries: list[str] = field(default_factory=list)

    def number(self, option: str, default: int, least: int = 0) -> int:
        """Return an option as a whole number. Errors: ConfigError."""
        text = self.options.get(option, str(default))
        if not text.isdigit() or int(text) < least:
            raise ConfigError(f"expected a whole number of at least {least}, found {text}", where=f"--{option}")
        return int(text)

    def config(self) -> RunConfig:
        """Return the configuration; the data sets that are named stand for `dataset`. Says its notices."""
        entries = [*self.entries, *([f"dataset={','.join(self.names)}"] if self.names else [])]
        config = build_run_config(resolve(self.path, entries, "data"))
        if not (config.data.dataset or config.data.train_file):
            raise ConfigError("no data is named", where=COMMAND_LINE,
                              fix="give a name of dataset_info.json, or a path")
        for line in config.notices:
            notice(line)
        return config


def read_words(argv: Sequence[str], options: Mapping[str, str], switches: Collection[str] = ()) -> Words:
    """Return the words sorted; keys that are no option of the sub-verb are left to the configuration."""
    words, at = Words(), 0
    while at < len(argv):
        word = argv[at]
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        at += 1
        if not word.startswith("--") and (not equals or Path(word).exists()):
            _add_name(words, word)
        elif key in switches:
            words.switches.add(key)
        else:
            is_next = not equals and at < len(argv) and not argv[at].startswith("--")
            _add_value(words, key, value if equals else argv[at] if is_next else None, options)
            at += is_next
    return words


def _add_name(words: Words, word: str) -> None:
    if word.lower().endswith(YAML) and Path(word).is_file():
        words.path = word
    else:
        words.names.append(word)


def _add_value(words: Words, key: str, value: str | None, options: Mapping[str, str]) -> None:
    if key not in options:
        words.entries.append(f"{SHORT.get(key, key)}={'true' if value is None else value}")
    elif value is None:
        raise ConfigError(f"--{key} needs a value", where=COMMAND_LINE, fix=f"--{key} {options[key]}")
    else:
        words.options[key] = value
