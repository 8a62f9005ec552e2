"""Generate core/schema.json from the Configs, the table of names and the table of scope: `make schema`."""

import json
from typing import Any

from pydantic.fields import FieldInfo

from danlu.core import key_names, key_scope
from danlu.core.config import StrictConfig
from danlu.core.schema import SCHEMA_FILE
from danlu.run_config import OWNERS
from danlu.stages.base import STAGES

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


def main() -> int:
    """Write the schema beside the checker that reads it."""
    SCHEMA_FILE.write_text(render(), encoding="utf-8")
    return 0


def render() -> str:
    """Return the text of the schema file."""
    return json.dumps(build(), indent=1, ensure_ascii=False) + "\n"


def build() -> dict[str, Any]:
    """Return the JSON Schema of the flat namespace."""
    properties: dict[str, Any] = {}
    for owner, config in _owners():
        for name, part in _properties(config, owner).items():
            if name in properties and _is_shared(properties[name], part):
                part["x-owner"] = f"{properties[name]['x-owner']} {owner.removeprefix('stage:')}"
            elif name in properties:
                raise ValueError(f"key {name} has two owners: {properties[name]['x-owner']} and {owner}")
            properties[name] = part
    properties["stage"]["enum"] = list(STAGES)
    for name, refused in key_scope.REFUSED_VALUES.items():
        built = properties[name].get("enum", [])
        properties[name]["x-refused"] = {value: why for value, why in refused.items() if value not in built}
    _add_known(properties)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "danlu run configuration", "type": "object", "additionalProperties": False,
        "properties": properties,
        "x-sampling-stages": [name for name in STAGES if "rollouts" in STAGES[name].roles],
    }


def _is_shared(known: dict[str, Any], part: dict[str, Any]) -> bool:
    """Return whether two stages own the same key in the same words."""
    both_stages = all(one["x-owner"].startswith("stage:") for one in (known, part))
    return both_stages and {**known, "x-owner": ""} == {**part, "x-owner": ""}


def _owners() -> list[tuple[str, type[StrictConfig]]]:
    return [*OWNERS.items(), *((f"stage:{name}", STAGES[name].Config) for name in STAGES)]


def _properties(config: type[StrictConfig], owner: str) -> dict[str, Any]:
    generated = config.model_json_schema(mode="validation").get("properties", {})
    return {name: _property(generated[name], field, owner) for name, field in config.model_fields.items()}


def _property(generated: dict[str, Any], field: FieldInfo, owner: str) -> dict[str, Any]:
    if not field.description:
        raise ValueError(f"a key of {owner} has no description: {generated}")
    options = generated.get("anyOf", [generated])
    kinds = [kind for option in options for kind in [option.get("type")] if kind]
    part: dict[str, Any] = {"description": field.description}
    items = next((option["items"] for option in options if "items" in option), None)
    if items is not None:
        part |= {"type": ["array", "string", "null"], "items": {"type": items["type"]}}
    else:
        part["type"] = kinds[0] if len(kinds) == 1 else kinds
    choices = [value for option in options for value in option.get("enum", [])]
    choices += [option["const"] for option in options if "const" in option]
    if choices:
        switch = [True, False] if "boolean" in kinds else []
        part["enum"] = switch + choices + ([None] if "null" in kinds else [])
    part |= {name: option[name] for option in options for name in _BOUNDS if name in option}
    default = generated.get("default")
    part["default"] = list(default) if isinstance(default, (tuple, list)) else default
    part |= {"x-owner": owner, "x-status": "active"}
    part |= {name: value for name, value in generated.items() if name.startswith("x-")}
    return part


def _add_known(properties: dict[str, Any]) -> None:
    """Add older names and the keys that are known without being acted on."""
    for name, why in key_scope.NO_EFFECT.items():
        _put(properties, name, _known("no_effect", "none", why))
    for name, why in key_scope.OUT_OF_SCOPE.items():
        part = _known("out_of_scope", "none", why)
        if name in key_scope.FOREIGN_DEFAULTS:
            part["x-foreign-default"] = key_scope.FOREIGN_DEFAULTS[name]
        _put(properties, name, part)
    for old, new in key_names.RENAMED.items():
        _put(properties, old, _alias(f"Older or foreign name of {new}.", new))
    for old in sorted(key_names.ONLY_OLD - set(key_scope.OUT_OF_SCOPE)):
        _put(properties, old, _alias("Older or foreign key; read as others, depending on its value.", ""))


def _put(properties: dict[str, Any], name: str, part: dict[str, Any]) -> None:
    if name in properties:
        raise ValueError(f"key {name} is both {properties[name]} and {part}")
    properties[name] = part


def _known(status: str, owner: str, why: str) -> dict[str, Any]:
    return {"description": f"{'No effect' if status == 'no_effect' else 'Refused'}: {why}.", "x-owner": owner,
            "x-status": status, "x-notice": why}


def _alias(text: str, new: str) -> dict[str, Any]:
    return {"description": text, "deprecated": True, "x-owner": "none", "x-status": "alias", "x-alias-of": new}


if __name__ == "__main__":
    raise SystemExit(main())
