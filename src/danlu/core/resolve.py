"""From a file and a command line to typed values, each with its origin, by the committed schema alone.

Every mistake of the configuration is reported at once. Rules that join several keys live in the Configs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.core import schema
from danlu.core.arguments import COMMAND_LINE, parse_arguments
from danlu.core.config_file import Entry, read_entries
from danlu.core.errors import ConfigError, did_you_mean
from danlu.core.key_names import REMARKS, RENAMED, REPLACING, REWRITTEN, Surroundings, is_no, is_yes
from danlu.core.relevance import idle_notices


@dataclass(frozen=True, slots=True)
class Resolved:
    """The keys that were given: typed values, where each was written, and what the reader should know."""

    verb: str
    values: dict[str, Any]
    origins: dict[str, str]
    notices: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    """What is gathered while reading: mistakes stop the run at the end, notices do not."""

    mistakes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def mistake(self, where: str, what: str, fix: str = "") -> None:
        self.mistakes.append(ConfigError(what, where=where, fix=fix).render())

    def stop(self) -> None:
        """Raise all mistakes as one error, if there are any."""
        if self.mistakes:
            raise ConfigError("\n".join(self.mistakes))


def resolve(path: Path | str | None, overrides: Sequence[str], verb: str) -> Resolved:
    """Return the given keys of a file and of the command line, which wins.

    Raises ConfigError with every mistake: unknown key, wrong type or value, out-of-scope key, two names of one key.
    """
    findings = _Findings()
    in_file = read_entries(Path(path)) if path is not None else []
    on_line = _last_of_each(parse_arguments(overrides), findings)
    around = Surroundings(verb, {RENAMED.get(one.key, one.key): one.value for one in [*in_file, *on_line]})
    merged: dict[str, Entry] = {}
    for entries in (in_file, on_line):
        merged.update(_in_present_names(entries, around, findings))
    values = _typed(merged.values(), findings)
    findings.stop()
    origins = {key: merged[key].where for key in values}
    if verb == "eval" and "reward_model" in values:
        values.setdefault("stage", schema.sampling_stages()[0])  # whose keys the sources of rewards are
    stage = values.get("stage", "sft")
    return Resolved(verb, values, origins, (*findings.notices, *idle_notices(values, origins, verb, stage)))


def _last_of_each(entries: list[Entry], findings: _Findings) -> list[Entry]:
    """Return the entries with the last value of a key that the command line gives twice."""
    last = {one.key: one for one in entries}
    twice = sorted({one.key for one in entries if last[one.key] is not one and last[one.key].value != one.value})
    if twice:
        findings.notices.append(f"given twice on the command line, the last value counts: {', '.join(twice)}")
    return list(last.values())


def _in_present_names(entries: Iterable[Entry], around: Surroundings, findings: _Findings) -> dict[str, Entry]:
    """Return the entries under the names of today, with a notice for those that were renamed."""
    present: dict[str, Entry] = {}
    replaced: dict[str, Entry] = {}
    told: list[str] = []
    for one in entries:
        name = RENAMED.get(one.key, one.key)
        rule = REWRITTEN.get(name)
        answer = rule(one.value, around) if rule else None
        if answer is None:
            readings = [Entry(name, one.value, one.where, one.raw, one.key)]
        else:
            readings = [Entry(key, value, one.where, None, one.key) for key, value in answer.items()]
        if name != one.key or answer is not None:
            told.append(_told(one, readings))
        for reading in readings:
            into = replaced if name in REPLACING else present
            _put(into, reading, one, findings)
    if told:
        findings.notices.append("older or foreign names are read as: " + "; ".join(told))
    findings.notices.extend(REMARKS[one.key] for one in entries if one.key in REMARKS)
    return present | replaced


def _told(written: Entry, readings: list[Entry]) -> str:
    now = ", ".join(f"{one.key}={_plain(one.value)}" for one in readings)
    return f"{written.key} -> {now or 'nothing'}"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _put(into: dict[str, Entry], reading: Entry, written: Entry, findings: _Findings) -> None:
    before = into.get(reading.key)
    if before is not None and before.value != reading.value:
        findings.mistake(written.where, f'"{written.key}" means {reading.key}, which {before.where} gives as well',
                         "keep one of them")
    into[reading.key] = reading


def _typed(entries: Iterable[Entry], findings: _Findings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    idle: dict[str, list[str]] = {}
    for one in entries:
        spec = schema.keys().get(one.key)
        if spec is None:
            hint = did_you_mean(one.key, schema.keys(), list_all=False)
            findings.mistake(one.where, f'unknown key "{one.key}"',
                             hint or "`danlu train --help` lists every key")
        elif spec["x-status"] == "out_of_scope" and not _asks_nothing(one, spec):
            findings.mistake(one.where, f'{one.label}: {spec["x-notice"]}')
        elif spec["x-status"] != "active":
            idle.setdefault(spec["x-notice"], []).append(one.key)
        else:
            _convert(one, spec, values, findings)
    findings.notices.extend(f"{', '.join(names)}: without effect, {why}" for why, names in idle.items())
    return values


def _convert(one: Entry, spec: schema.Spec, values: dict[str, Any], findings: _Findings) -> None:
    try:
        values[one.key] = schema.convert(spec, one.value, one.raw)
    except ValueError as error:
        findings.mistake(one.where, f"{one.label}: {error}", _way_out(one, spec))


def _way_out(one: Entry, spec: schema.Spec) -> str:
    if one.where == COMMAND_LINE and one.value == "true" and not schema.is_switch(spec):
        return f"give a value: --{one.key} VALUE or {one.key}=VALUE"
    return ""


def _asks_nothing(one: Entry, spec: schema.Spec) -> bool:
    """Return whether an out-of-scope key is switched off, or holds what its own tool takes without it."""
    usual = spec.get("x-foreign-default")
    if one.value in (None, "", [], {}) or is_no(one.value):
        return True
    if isinstance(usual, bool):
        return is_yes(one.value)
    if isinstance(usual, (int, float)):
        return _number(one.value) == usual
    return usual is not None and str(one.value) == usual


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
