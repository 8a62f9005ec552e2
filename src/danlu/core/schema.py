"""The committed JSON Schema of all keys, and the small checker that turns a written value into the typed one.

The schema is a JSON Schema (draft 2020-12) with notes of our own: `x-owner` (which part reads the key), `x-status`
(active, no_effect, out_of_scope), `x-notice` (the sentence that goes with it), `x-alias-of`, `x-refused` (values that
are known but out of scope), `x-foreign-default` (the value of an out-of-scope key that asks for nothing),
`x-only-with`, `x-idle-stages`; at its root `x-sampling-stages` (stages that train on answers of their own).
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from danlu.core.errors import did_you_mean
from danlu.core.key_names import NO, YES

SCHEMA_FILE = Path(__file__).with_name("schema.json")
Spec = dict[str, Any]


@lru_cache(maxsize=1)
def load_schema() -> Spec:
    """Return the committed JSON Schema."""
    loaded: Spec = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


def keys() -> dict[str, Spec]:
    """Return every known key with its part of the schema, aliases included."""
    properties: dict[str, Spec] = load_schema()["properties"]
    return properties


def stages_of(spec: Spec) -> tuple[str, ...]:
    """Return the stages that own a key, `stage:dpo kto` for two; none when another part reads it."""
    owner: str = spec["x-owner"]
    return tuple(owner.removeprefix("stage:").split()) if owner.startswith("stage:") else ()


def sampling_stages() -> tuple[str, ...]:
    """Return the stages that sample answers while they train."""
    return tuple(load_schema()["x-sampling-stages"])


def is_known(name: str) -> bool:
    """Return whether `name` is a key, an older name of one, or a key that is known to be out of scope."""
    return name in keys()


def types(spec: Spec) -> list[str]:
    """Return the JSON types a key accepts, `null` included."""
    named = spec.get("type", [])
    return [named] if isinstance(named, str) else list(named)


def is_list(spec: Spec) -> bool:
    """Return whether the key holds a comma list."""
    return "items" in spec


def is_switch(spec: Spec) -> bool:
    """Return whether the key holds true or false, perhaps one word more, so that `--key` alone means true."""
    return "boolean" in types(spec) and ("string" not in types(spec) or "enum" in spec)


def convert(spec: Spec, value: Any, raw: str | None = None) -> Any:
    """Return `value` as the type that the schema asks for.

    `raw` is the text of a plain YAML scalar or of a command line argument; it mends what YAML 1.1 misreads (`no` as
    false, `1e-4` as text). Raises ValueError with what was expected and what was found.
    """
    accepted = types(spec)
    refused = spec.get("x-refused", {}).get(raw if raw is not None else str(value).lower())
    if refused:
        raise ValueError(refused)
    if value is None or (raw is not None and raw.lower() in ("null", "~")):
        if "null" in accepted:
            return None
        raise ValueError(f"expected {expectation(spec)}, found nothing")
    if is_list(spec):
        return _list(spec, value, raw)
    for kind in ("boolean", "integer", "number", "object", "string"):
        converted = _KINDS[kind](value, raw) if kind in accepted else None
        if converted is not None and _allowed(spec, converted):
            return converted
    raise ValueError(f"expected {expectation(spec)}, found {raw if raw is not None else json.dumps(value)}"
                     + _closest(spec, raw if raw is not None else value))


def expectation(spec: Spec) -> str:
    """Return in words what a key accepts: `a whole number, at least 1`."""
    if "enum" in spec:
        return "one of " + ", ".join(one if isinstance(one, str) else json.dumps(one) for one in spec["enum"])
    names = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text",
             "object": "a map", "array": "a comma list"}
    kinds = types(spec)
    if is_list(spec):
        kinds = ["array"]
    words = " or ".join(names[kind] for kind in names if kind in kinds)
    bounds = [f"{text} {spec[name]:g}" for name, text in (
        ("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"),
    ) if name in spec]
    return ", ".join([words, *bounds])


def _closest(spec: Spec, found: Any) -> str:
    hint = did_you_mean(str(found), [str(one) for one in spec.get("enum", ())], list_all=False)
    return f"; {hint}" if hint else ""


def _allowed(spec: Spec, value: Any) -> bool:
    if "enum" in spec and value not in spec["enum"]:
        return False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    low, high = spec.get("minimum", value), spec.get("maximum", value)
    above, below = spec.get("exclusiveMinimum", float("-inf")), spec.get("exclusiveMaximum", float("inf"))
    return bool(low <= value <= high and above < value < below)


def _boolean(value: Any, raw: str | None) -> bool | None:
    if isinstance(value, bool):
        return value
    word = str(raw if raw is not None else value).lower()
    return True if word in YES else False if word in NO else None


def _integer(value: Any, raw: str | None) -> int | None:
    number = _number(value, raw)
    return int(number) if number is not None and number == int(number) else None


def _number(value: Any, raw: str | None) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value if value == value and abs(value) != float("inf") else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def _string(value: Any, raw: str | None) -> str | None:
    if raw is not None:
        return raw
    return value if isinstance(value, str) else None


def _object(value: Any, raw: str | None) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, dict) else None


def _list(spec: Spec, value: Any, raw: str | None) -> list[Any]:
    if isinstance(value, list):
        parts = value
    elif isinstance(value, dict):
        raise ValueError("expected a comma list, found a map")
    else:
        parts = [part.strip() for part in str(raw if raw is not None else value).split(",") if part.strip()]
    if spec["items"]["type"] == "string":
        if any(not isinstance(part, (str, int, float)) for part in parts):
            raise ValueError(f"expected a comma list of names, found {json.dumps(value)}")
        return [str(part) for part in parts]
    numbers = [_number(part, None) for part in parts]
    if any(number is None for number in numbers):
        raise ValueError(f"expected numbers with commas between them, found {value}")
    return numbers


_KINDS = {"boolean": _boolean, "integer": _integer, "number": _number, "string": _string, "object": _object}
