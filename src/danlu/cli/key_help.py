"""Help on keys, printed from the committed schema: no Config is imported."""

from textwrap import wrap
from typing import Any

from danlu.core import schema

TITLES = {
    "run": "what the run does", "model": "model", "quantization": "quantisation", "adapter": "method", "data": "data",
    "engine": "training", "generation": "generation", "evaluation": "evaluation tasks", "export": "export",
}


def key_table(owners: tuple[str, ...]) -> str:
    """Return the keys of these owners as text, one group for each owner."""
    properties = schema.keys()
    lines: list[str] = []
    for owner in (*owners, *sorted({spec["x-owner"] for spec in properties.values() if _is_stage(spec)})):
        named = [key for key, spec in properties.items() if spec["x-owner"] == owner and spec["x-status"] == "active"]
        if named:
            lines += ["", f"{TITLES.get(owner, owner)}:"]
        for key in named:
            lines += _entry(key, properties[key])
    return "\n".join(lines)


def key_page(key: str) -> str:
    """Return everything the schema says about one key."""
    spec = schema.keys()[key]
    lines = [f"{key}: {spec['description']}"]
    if spec["x-status"] == "alias":
        return lines[0] + (f"\n\n{key_page(spec['x-alias-of'])}" if spec["x-alias-of"] else "")
    if spec["x-status"] == "active":
        lines += [f"  expects   {schema.expectation(spec)}", f"  default   {shown(spec['default'])}",
                  f"  owner     {TITLES.get(spec['x-owner'], spec['x-owner'])}"]
    older = [name for name, other in schema.keys().items() if other.get("x-alias-of") == key]
    if older:
        lines.append(f"  also      {', '.join(older)}")
    refused: dict[str, list[str]] = {}
    for value, why in spec.get("x-refused", {}).items():
        refused.setdefault(why, []).append(value)
    lines += [f"  refused   {', '.join(values)}: {why}" for why, values in refused.items()]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as one would write it in YAML."""
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "unset"
    return str(value)


def _is_stage(spec: schema.Spec) -> bool:
    return bool(spec["x-owner"].startswith("stage:"))


def _entry(key: str, spec: schema.Spec) -> list[str]:
    text = f"{spec['description']} [{schema.expectation(spec)}; default {shown(spec['default'])}]"
    folded = wrap(text, width=118 - 30)
    head = f"  {key.ljust(28)}"
    if len(key) > 28:
        return [f"  {key}", *(" " * 30 + line for line in folded)]
    return [head + folded[0], *(" " * 30 + line for line in folded[1:])]
