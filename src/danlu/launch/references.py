"""Replace `${...}` in the keys of a step: `${here}`, `${output_dir}`, `${steps.NAME.KEY}`, `${name}`."""

import re
from collections.abc import Mapping
from typing import Any

from danlu.core.config_file import Entry
from danlu.core.errors import ConfigError, did_you_mean

REFERENCE = re.compile(r"\$\{([^{}]*)\}")


class References:
    """What the references of one step may name, and which steps it named.

    `plain` holds the words without a dot; `steps` the resolved keys of the steps before this one.
    """

    def __init__(self, plain: Mapping[str, str], steps: Mapping[str, Mapping[str, Any]]) -> None:
        self._plain, self._steps = plain, steps
        self.used: list[str] = []

    def resolve(self, entry: Entry) -> Any:
        """Return the value of an entry with every reference replaced. Raises ConfigError with the entry's line."""
        return self._walk(entry.value, entry)

    def _walk(self, value: Any, entry: Entry) -> Any:
        if isinstance(value, str):
            whole = REFERENCE.fullmatch(value)
            if whole:
                return self._look_up(whole[1].strip(), entry)
            return REFERENCE.sub(lambda found: str(self._look_up(found[1].strip(), entry)), value)
        if isinstance(value, list):
            return [self._walk(one, entry) for one in value]
        if isinstance(value, dict):
            return {key: self._walk(one, entry) for key, one in value.items()}
        return value

    def _look_up(self, name: str, entry: Entry) -> Any:
        if name in self._plain:
            return self._plain[name]
        parts = name.split(".")
        if len(parts) != 3 or parts[0] != "steps":
            known = [*self._plain, "steps.NAME.KEY"]
            raise ConfigError(f'"{entry.key}" refers to ${{{name}}}, which nothing defines', where=entry.where,
                              fix=did_you_mean(name, known))
        _, step, key = parts
        if step not in self._steps:
            raise ConfigError(f'"{entry.key}" refers to step "{step}", which is not before this one', where=entry.where,
                              fix=did_you_mean(step, self._steps) or "a step refers to the steps above it")
        if key not in self._steps[step]:
            raise ConfigError(f'"{entry.key}" refers to key "{key}", which step {step} does not give',
                              where=entry.where, fix=did_you_mean(key, self._steps[step]))
        if step not in self.used:
            self.used.append(step)
        return self._steps[step][key]
