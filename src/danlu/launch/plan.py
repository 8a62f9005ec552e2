"""Resolve a pipeline before anything runs: every step's keys, folder and what it waits for; all mistakes at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from danlu.core.config_file import Entry
from danlu.core.errors import ConfigError, UserError, did_you_mean
from danlu.core.relevance import OWNERS
from danlu.core.resolve import resolve
from danlu.launch.journal import verb_file
from danlu.launch.kinds import FOLDER, KINDS, Kind, verb_values
from danlu.launch.model_source import ADAPTERS, MODEL, schema_name, source_entries, value_of
from danlu.launch.pipeline_file import Pipeline, Step
from danlu.launch.references import References
from danlu.models.new_config import NewConfig


@dataclass(frozen=True, slots=True)
class Planned:
    """A step ready to run. `values` are its keys with all references replaced; `upstream` the steps it depends on."""

    name: str
    kind: Kind
    values: dict[str, Any]
    folder: Path
    upstream: tuple[str, ...]

    @property
    def verb_values(self) -> dict[str, Any]:
        """The keys under the names of the step's verb."""
        return verb_values(self.kind, self.values)


def plan_steps(pipeline: Pipeline) -> list[Planned]:
    """Return the steps with every key resolved. Raises ConfigError with all mistakes that show without torch."""
    planned: dict[str, Planned] = {}
    mistakes: list[str] = []
    for step in pipeline.steps:
        try:
            entries = _entries_of(pipeline, step, planned)
            planned[step.name] = _plan_step(pipeline, step, entries, planned)
            _check(planned[step.name], entries, step)
        except UserError as error:
            mistakes.append(error.render())
            planned.setdefault(step.name, Planned(step.name, KINDS[step.kind], {}, Path(), ()))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return list(planned.values())


def _entries_of(pipeline: Pipeline, step: Step, before: Mapping[str, Planned]) -> dict[str, Entry]:
    """Return the step's folder, the defaults its verb reads, the model of the step it starts from, its own keys."""
    kind = KINDS[step.kind]
    folder = Entry(FOLDER, str(Path(pipeline.output_dir) / step.name), step.where)
    defaults = {key: entry for key, entry in pipeline.defaults.items() if kind.takes_default(key)}
    own = {FOLDER if key == kind.folder_key else key: entry for key, entry in step.keys.items()}
    if step.source is None:
        return {FOLDER: folder, **defaults, **own}
    defaults = {key: entry for key, entry in defaults.items() if schema_name(key) not in (MODEL, ADAPTERS)}
    written = {key: entry.value for key, entry in {**defaults, **own}.items()}
    given = source_entries(step.source, kind, own, value_of(written, "finetuning_type"), before)
    return {FOLDER: folder, **defaults, **given, **own}


def _plan_step(
    pipeline: Pipeline, step: Step, entries: Mapping[str, Entry], before: Mapping[str, Planned],
) -> Planned:
    for name in step.needs:
        if name not in before:
            raise ConfigError(f'step {step.name} needs "{name}", which is not before it', where=step.where,
                              fix=did_you_mean(name, before) or "a step needs steps above it")
    plain = {"name": pipeline.name, "here": str(pipeline.path.parent)}
    seen = {name: one.values for name, one in before.items()}
    references = References(plain, seen)
    folder = str(references.resolve(entries[FOLDER]))
    own = References({**plain, FOLDER: folder}, seen)
    values = {key: folder if key == FOLDER else own.resolve(entry) for key, entry in entries.items()}
    source = [] if step.source is None else [str(step.source.value)]
    upstream = tuple(dict.fromkeys([*references.used, *own.used, *source, *step.needs]))
    return Planned(step.name, KINDS[step.kind], values, Path(folder), upstream)


def _check(step: Planned, entries: Mapping[str, Entry], written: Step) -> None:
    """Let the verb's own rules look at the keys; put the pipeline's lines into what they say."""
    if step.kind.name == "new":
        _check_new(step, entries)
    elif step.kind.name in OWNERS:
        _check_flat(step, entries)
    else:
        _check_own(step, written)


def _check_flat(step: Planned, entries: Mapping[str, Entry]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{step.name}.yaml"
        file.write_text(verb_file(step.verb_values), encoding="utf-8")
        places = [entry.where for entry in entries.values()]
        try:
            resolve(file, (), step.kind.name)
        except ConfigError as error:
            text = re.sub(re.escape(str(file)) + r":(\d+)(:\d+)?", lambda found: places[int(found[1]) - 1],
                          error.render())
            raise ConfigError(f"{text}\n  step: {step.name}") from None


def _check_new(step: Planned, entries: Mapping[str, Entry]) -> None:
    try:
        NewConfig.model_validate(step.values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else ""
            where = entries[key].where if key in entries else entries[FOLDER].where
            what = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {key + ': ' if key else ''}{what}")
        raise ConfigError("\n".join(lines) + f"\n  step: {step.name}") from None


def _check_own(step: Planned, written: Step) -> None:
    required = "command" if "command" in step.kind.own else "evaluations"
    value = step.values.get(required)
    if not value or not isinstance(value, (str, list) if required == "command" else dict):
        raise ConfigError(f'step {step.name}: "{required}" is missing or of the wrong kind', where=written.where,
                          fix="command: [program, word, ...], or one line for the shell" if required == "command"
                          else "evaluations: {name: folder of an eval step, ...}")
