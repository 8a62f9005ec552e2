"""Read a pipeline file: a name, a folder, defaults and a list of steps, each key with the line it stands on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from danlu.core.arguments import COMMAND_LINE, parse_arguments
from danlu.core.config_file import Entry, read_entries
from danlu.core.errors import ConfigError, did_you_mean
from danlu.launch.kinds import KINDS

TOP_KEYS = ("name", "output_dir", "environment", "defaults", "steps")
STEP_KEYS = ("name", "run", "needs", "from")


@dataclass(frozen=True, slots=True)
class Step:
    """One step as written. `keys` are those of its verb; `needs` names steps it waits for beside those it refers to.

    source  the step whose model it starts from, as `from` says; None when it names its model itself
    """

    name: str
    kind: str
    keys: dict[str, Entry]
    needs: tuple[str, ...]
    where: str
    source: Entry | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file as read, overrides applied. `defaults` stand behind every step's own keys.

    `environment` holds variables for every step, behind those that are set already.
    """

    name: str
    output_dir: str
    environment: dict[str, str]
    defaults: dict[str, Entry]
    steps: tuple[Step, ...]
    path: Path


def read_pipeline(path: Path, overrides: Sequence[str]) -> Pipeline:
    """Return the pipeline of a YAML file and the command line.

    `key=value` replaces the key in every step whose verb reads it, `step.key=value` in one step; `name` and
    `output_dir` are those of the pipeline. Raises ConfigError with file and line.
    """
    if path.suffix.lower() == ".json":
        raise ConfigError("a pipeline is a YAML file", where=str(path))
    read_entries(path)  # says what is wrong with the file's syntax, and which key stands there twice
    top = _entries(path, _root(path))
    _check_names(top, TOP_KEYS, "key of a pipeline")
    for key in ("name", "steps"):
        if key not in top:
            raise ConfigError(f'"{key}" is missing', where=str(path), fix="a pipeline has a name and steps")
    name = _text(top["name"])
    output_dir = _text(top["output_dir"]) if "output_dir" in top else f"runs/{name}"
    defaults = _entries(path, _node(path, "defaults")) if "defaults" in top else {}
    variables = _entries(path, _node(path, "environment")) if "environment" in top else {}
    environment = {key: _text(entry) for key, entry in variables.items()}
    pipeline = Pipeline(name, output_dir, environment, defaults, _read_steps(path), path)
    return _overridden(pipeline, parse_arguments(overrides))


def _root(path: Path) -> yaml.MappingNode:
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("the file is empty", where=str(path), fix="a pipeline has a name and steps")
    return root


def _node(path: Path, key: str) -> yaml.Node:
    found: yaml.Node = next(value for name, value in _root(path).value if name.value == key)
    return found


def _entries(path: Path, node: yaml.Node) -> dict[str, Entry]:
    """Return the entries of a map with their lines."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("expected `key: value` lines", where=f"{path}:{node.start_mark.line + 1}")
    found: dict[str, Entry] = {}
    maker = yaml.SafeLoader("")
    for key, value in node.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value in found:
            raise ConfigError(f'"{key.value}" is written twice, first at {found[key.value].where}', where=where,
                              fix="keep one of them")
        plain = isinstance(value, yaml.ScalarNode) and value.style is None
        found[key.value] = Entry(key.value, maker.construct_object(value, deep=True), where,
                                 value.value if plain else None)
    return found


def _text(entry: Entry) -> str:
    if not isinstance(entry.value, (str, int)) or isinstance(entry.value, bool):
        raise ConfigError(f'"{entry.key}" is a word or a path, found {entry.value!r}', where=entry.where)
    return str(entry.value)


def _check_names(entries: dict[str, Entry], known: Iterable[str], what: str) -> None:
    for key, entry in entries.items():
        if key not in known:
            raise ConfigError(f'"{key}" is no {what}', where=entry.where, fix=did_you_mean(key, known))


def _read_steps(path: Path) -> tuple[Step, ...]:
    node = _node(path, "steps")
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ConfigError('"steps" is a list, each with `name` and `run`', where=f"{path}:{node.start_mark.line + 1}")
    steps: dict[str, Step] = {}
    for one in node.value:
        step = _read_step(path, one)
        if step.name in steps:
            raise ConfigError(f'two steps are called "{step.name}", the first at {steps[step.name].where}',
                              where=step.where, fix="give each step a name of its own")
        steps[step.name] = step
    return tuple(steps.values())


def _read_step(path: Path, node: yaml.Node) -> Step:
    entries = _entries(path, node)
    where = f"{path}:{node.start_mark.line + 1}"
    for key in ("name", "run"):
        if key not in entries:
            raise ConfigError(f'a step without "{key}"', where=where, fix="each step has a name and a run")
    name, kind = _text(entries["name"]), _text(entries["run"])
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f'"{name}" is no name for a step', where=entries["name"].where,
                          fix="use letters, digits, - and _")
    if kind not in KINDS:
        raise ConfigError(f'"{kind}" is nothing a step can run', where=entries["run"].where,
                          fix=did_you_mean(kind, KINDS))
    needs = entries["needs"].value if "needs" in entries else []
    needs = [needs] if isinstance(needs, str) else needs
    if not isinstance(needs, list) or not all(isinstance(one, str) for one in needs):
        raise ConfigError('"needs" is a list of steps', where=entries["needs"].where)
    keys = {key: entry for key, entry in entries.items() if key not in STEP_KEYS}
    for key, entry in keys.items():
        if not KINDS[kind].knows(key):
            raise ConfigError(f'step {name}: {kind} has no key "{key}"', where=entry.where,
                              fix=did_you_mean(key, KINDS[kind].known(), list_all=len(KINDS[kind].known()) < 20))
    if "from" in entries and not isinstance(entries["from"].value, str):
        raise ConfigError(f'"from" is the name of a step, found {entries["from"].value!r}', where=entries["from"].where)
    return Step(name, kind, keys, tuple(needs), where, entries.get("from"))


def _overridden(pipeline: Pipeline, given: Sequence[Entry]) -> Pipeline:
    for entry in given:
        pipeline = _override(pipeline, entry)
    return pipeline


def _override(pipeline: Pipeline, entry: Entry) -> Pipeline:
    if entry.key == "name":
        return replace(pipeline, name=str(entry.value))
    if entry.key == "output_dir":
        return replace(pipeline, output_dir=str(entry.value))
    step_name, dot, key = entry.key.partition(".")
    if not dot:
        step_name, key = "", entry.key
    names = [step.name for step in pipeline.steps]
    if dot and step_name not in names:
        raise ConfigError(f'no step is called "{step_name}"', where=COMMAND_LINE, fix=did_you_mean(step_name, names))
    meant = [step.name for step in pipeline.steps if (step.name == step_name and KINDS[step.kind].knows(key))
             or (not dot and (key in step.keys or KINDS[step.kind].takes_default(key)))]
    if not meant:
        known = {one for step in pipeline.steps if step.name == step_name or not dot
                 for one in KINDS[step.kind].known()}
        raise ConfigError(f'no step{" " + step_name if dot else ""} has the key "{key}"', where=COMMAND_LINE,
                          fix=did_you_mean(key, known, list_all=False))
    new = replace(entry, key=key)
    steps = tuple(replace(step, keys={**step.keys, key: new}) if step.name in meant else step
                  for step in pipeline.steps)
    return replace(pipeline, steps=steps)
