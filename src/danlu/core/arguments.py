"""Split what stands after the verb into a configuration file and `key=value` or `--key value` entries."""

from collections.abc import Sequence

from danlu.core import schema
from danlu.core.config_file import SUFFIXES, Entry
from danlu.core.errors import ConfigError
from danlu.core.key_names import NO, YES

COMMAND_LINE = "command line"


def split_file(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the configuration file, if the first argument is one, and the arguments that follow."""
    if argv and not argv[0].startswith("-") and ("=" not in argv[0] or argv[0].lower().endswith(SUFFIXES)):
        return argv[0], list(argv[1:])
    return None, list(argv)


def parse_arguments(argv: Sequence[str]) -> list[Entry]:
    """Return the entries of `key=value`, `--key value`, `--key=value` and `--switch` in the order given.

    Dashes and underscores in names are equal. Raises ConfigError for a word that belongs to no key.
    """
    entries: list[Entry] = []
    at = 0
    while at < len(argv):
        word = argv[at]
        name, equals, value = word.partition("=")
        key = _normal(name)
        if equals:
            entries.append(_entry(key, value))
            at += 1
        elif word.startswith("--") and len(word) > 2:
            entry, at = _flag(key, argv, at + 1)
            entries.append(entry)
        else:
            raise ConfigError(f'"{word}" belongs to no key', where=COMMAND_LINE,
                              fix="write `danlu train FILE.yaml key=value ...` or `--key value`")
    return entries


def _normal(name: str) -> str:
    return name.removeprefix("--").replace("-", "_") if name.startswith("--") else name.replace("-", "_")


def _entry(key: str, value: str) -> Entry:
    return Entry(key, value, COMMAND_LINE, value)


def _flag(key: str, argv: Sequence[str], at: int) -> tuple[Entry, int]:
    """Return the entry of `--key` and the position after its value."""
    spec = schema.keys().get(key)
    if spec is None and key.startswith("no_") and schema.is_switch(schema.keys().get(key[3:], {})):
        return _entry(key[3:], "false"), at
    values: list[str] = []
    while at < len(argv) and not argv[at].startswith("--") and _takes(spec, argv[at], len(values)):
        values.append(argv[at])
        at += 1
    return _entry(key, ",".join(values) if values else "true"), at


def _takes(spec: schema.Spec | None, word: str, taken: int) -> bool:
    """Return whether `word` is the next value of the key; a switch takes one yes or no, a list takes many words."""
    if spec is not None and schema.is_switch(spec):
        return taken == 0 and word.lower() in (*YES, *NO, *spec.get("enum", ()))
    return taken == 0 or (spec is not None and schema.is_list(spec) and "=" not in word)
