"""Read a flat YAML or JSON file into entries that remember their line. Knows nothing of what the keys mean."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from danlu.core.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` as written. `raw` is the text of a plain scalar, from which YAML made `value`."""

    key: str
    value: Any
    where: str
    raw: str | None = None
    written: str = ""

    @property
    def label(self) -> str:
        """The key for messages, with the name under which it was written."""
        return f'"{self.key}" (written as {self.written})' if self.written not in ("", self.key) else f'"{self.key}"'


def read_entries(path: Path) -> list[Entry]:
    """Return the top-level entries of a YAML or JSON file in file order.

    Raises ConfigError: no such file, not UTF-8, broken syntax (with line and column), a key written twice.
    """
    text = _read(path)
    entries = _json_entries(path, text) if path.suffix.lower() == ".json" else _yaml_entries(path, text)
    first: dict[str, Entry] = {}
    twice = [f'{one.where}: "{one.key}" is written twice, first at {first[one.key].where}'
             for one in entries if first.setdefault(one.key, one) is not one]
    if twice:
        raise ConfigError("\n".join(twice), fix="keep one of them")
    return entries


def _read(path: Path) -> str:
    if path.is_dir():
        raise ConfigError("is a folder, not a configuration file", where=str(path))
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a configuration file ends in {', '.join(SUFFIXES)}", where=str(path))
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix=_similar_files(path))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}", where=str(path), fix="save it as UTF-8") from None


def _similar_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(one.name for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean {folder / close[0]}?" if close else f"files in {folder}: {', '.join(names[:20]) or 'none'}"


def _yaml_entries(path: Path, text: str) -> list[Entry]:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("expected `key: value` lines", where=f"{path}:{root.start_mark.line + 1}")
        return [_yaml_entry(path, loader, key, value) for key, value in root.value]
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    finally:
        loader.dispose()


def _yaml_entry(path: Path, loader: yaml.SafeLoader, key: yaml.Node, value: yaml.Node) -> Entry:
    where = f"{path}:{key.start_mark.line + 1}"
    if not isinstance(key, yaml.ScalarNode):
        raise ConfigError("a key is one word", where=where)
    plain = isinstance(value, yaml.ScalarNode) and value.style is None
    return Entry(key.value, loader.construct_object(value, deep=True), where, value.value if plain else None)


def _yaml_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or str(error)
    hint = "write `key: value` with one blank after the colon; quote values that hold `: ` or begin with a sign"
    if "\\t" in problem:
        hint = "indent with blanks, not tabs"
    return ConfigError(f"broken YAML: {problem}", where=place, fix=hint)


def _json_entries(path: Path, text: str) -> list[Entry]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"broken JSON: {error.msg}", where=f"{path}:{error.lineno}:{error.colno}",
                          fix="JSON wants double quotes, commas between entries and none after the last") from None
    if not isinstance(whole, dict):
        raise ConfigError('expected an object, {"key": value, ...}', where=f"{path}:1")
    entries, decoder = [], json.JSONDecoder()
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, end = decoder.raw_decode(text, at)
        value, stop = decoder.raw_decode(text, _skip(text, end))
        entries.append(Entry(key, value, f"{path}:{text.count(chr(10), 0, at) + 1}"))
        at = _skip(text, stop)
    return entries


def _skip(text: str, at: int) -> int:
    """Return the first position from `at` that is neither white space nor a separator."""
    while text[at] in " \t\r\n,:":
        at += 1
    return at
