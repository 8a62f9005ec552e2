"""Read a list of rules from YAML and tell mistakes with their line. Knows nothing of what rules mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from danlu.core.config import StrictConfig
from danlu.core.errors import ConfigError, did_you_mean

R = TypeVar("R", bound=StrictConfig)


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """A rule with the file and line it was read from."""

    rule: R
    where: str


def read_rules(source: str, kinds: Mapping[str, type[R]]) -> list[Read[R]]:
    """Return the rules of a YAML file, or of `source` itself when it is YAML of more than one line or in brackets.

    kinds  the rule of each first key
    Raises ConfigError with file and line for a mistake.
    """
    text, name = _text(source)
    fix = "write a list: `- regex: ...`, one rule an item"
    try:
        loader = yaml.BaseLoader(text)  # everything is text, `yes` too; the rules know which keys are numbers
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"no YAML: {getattr(error, 'problem', None) or error}",
                          where=name if mark is None else f"{name}:{mark.line + 1}", fix=fix) from None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ConfigError("no list of rules", where=name, fix=fix)
    return [_rule(loader, one, name, kinds) for one in node.value]


def _text(source: str) -> tuple[str, str]:
    if "\n" in source or source.lstrip().startswith(("[", "-", "{")):
        return source, "reward_model"
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(f"file {path} does not exist", where="reward_model", fix="check the path")
    return path.read_text(encoding="utf-8"), str(path)


def _rule(loader: yaml.BaseLoader, node: yaml.Node, name: str, kinds: Mapping[str, type[R]]) -> Read[R]:
    where = f"{name}:{node.start_mark.line + 1}"
    known = ", ".join(kinds)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"a rule is a map that begins with one of {known}", where=where,
                          fix="write `regex: PATTERN` for instance")
    values, lines = _entries(loader, node, name)
    named = [key for key in values if key in kinds]
    if len(named) != 1:
        what = f"{' and '.join(named)} in one rule" if named else f"a rule with none of {known}"
        raise ConfigError(what, where=where, fix="write one item for each rule" if named else
                          did_you_mean(next(iter(values), ""), kinds))
    kind = kinds[named[0]]
    try:
        return Read(kind.model_validate(values), where)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0]) if problem["loc"] else named[0]
        raise ConfigError(_said(key, problem), where=f"{name}:{lines.get(key, node.start_mark.line + 1)}",
                          fix=_known_keys(key, kind)) from None


def _entries(loader: yaml.BaseLoader, node: yaml.MappingNode, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a map's values and the line of each key."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(loader.construct_object(key_node)), key_node.start_mark.line + 1
        if key in values:
            raise ConfigError(f'"{key}" twice in one rule', where=f"{name}:{line}", fix="keep one of them")
        values[key], lines[key] = loader.construct_object(value_node, deep=True), line
    return values, lines


def _said(key: str, problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{key}"'
    return f'"{key}" {problem["msg"].removeprefix("Value error, ")}'


def _known_keys(key: str, kind: type[StrictConfig]) -> str:
    names = [field.alias or name for name, field in kind.model_fields.items()]
    return "see docs/rewards.md" if key in names else did_you_mean(key, names)
