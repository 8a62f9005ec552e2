"""`from: STEP`: the keys with which a step starts from another step's model, as the field writes them.

A whole model (of new, export, and train without adapters) becomes `model_name_or_path`. An adapter becomes its base
with `adapter_name_or_path`: what was merged into the base first, then the adapter; a step that trains an adapter of its
own merges them all and begins a new one (`create_new_adapter`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from danlu.core import schema
from danlu.core.config_file import Entry
from danlu.core.errors import ConfigError, did_you_mean
from danlu.core.key_names import is_yes
from danlu.launch.kinds import FOLDER, Kind

MODEL, ADAPTERS, NEW_ADAPTER = "model_name_or_path", "adapter_name_or_path", "create_new_adapter"
MAKES_MODELS = ("new", "train", "export")


class Resolved(Protocol):
    """A step whose keys are known."""

    @property
    def kind(self) -> Kind:
        """What it runs."""
        ...

    @property
    def values(self) -> dict[str, Any]:
        """Its keys."""
        ...


def source_entries(
    source: Entry, kind: Kind, own: Mapping[str, Entry], finetuning_type: Any, before: Mapping[str, Resolved],
) -> dict[str, Entry]:
    """Return the keys that `from` stands for, on its line.

    own              the keys that the step writes itself; they may not name a model beside `from`
    finetuning_type  what the step trains, None for the default
    before           the steps above it
    Raises ConfigError for a step that is not above, or that makes no model.
    """
    name = str(source.value)
    if not (kind.knows(MODEL) and kind.knows(ADAPTERS)):
        raise ConfigError(f"a step that runs {kind.name} starts from no model", where=source.where,
                          fix="refer to the folder of a step as ${steps.NAME.output_dir}")
    for key, entry in own.items():
        if schema_name(key) in (MODEL, ADAPTERS):
            raise ConfigError(f'"from" and "{key}" both name the model to start from', where=entry.where,
                              fix="keep one of them")
    if name not in before:
        raise ConfigError(f'"from" names "{name}", which is not a step above this one', where=source.where,
                          fix=did_you_mean(name, before) or "a step starts from a step above it")
    given = before[name]
    if given.kind.name not in MAKES_MODELS:
        raise ConfigError(f'"from" names {name}, which runs {given.kind.name} and makes no model', where=source.where,
                          fix=f"name a step that runs {', '.join(MAKES_MODELS[:-1])} or {MAKES_MODELS[-1]}")
    if not given.values:  # its own mistakes are told; there is nothing to build on
        return {}
    keys = model_of(given)
    begins_anew = ADAPTERS in keys and kind.trains and trains_adapter(finetuning_type)
    if begins_anew and not any(schema_name(key) == NEW_ADAPTER for key in own):
        keys[NEW_ADAPTER] = True
    return {key: replace(source, key=key, value=value, raw=None) for key, value in keys.items()}


def model_of(step: Resolved) -> dict[str, Any]:
    """Return the keys that name the model which a step leaves behind."""
    folder = step.values.get(FOLDER)
    if not step.kind.trains or not trains_adapter(value_of(step.values, "finetuning_type")):
        return {MODEL: folder}
    chain = _as_list(value_of(step.values, ADAPTERS))
    merged = chain if is_yes(value_of(step.values, NEW_ADAPTER)) else chain[:-1]
    return {MODEL: value_of(step.values, MODEL), ADAPTERS: [*merged, folder]}


def trains_adapter(finetuning_type: Any) -> bool:
    """Return whether a step with this finetuning_type leaves an adapter; None means the default."""
    return str(finetuning_type or schema.keys()["finetuning_type"]["default"]) == "lora"


def value_of(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key under whichever of its names it is written, None when it is not."""
    return next((value for name, value in values.items() if schema_name(name) == key), None)


def schema_name(key: str) -> str:
    """Return today's name of a key."""
    alias = schema.keys().get(key, {}).get("x-alias-of")
    return str(alias) if alias else key


def _as_list(value: Any) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value or []
    return [str(word).strip() for word in words if str(word).strip()]
