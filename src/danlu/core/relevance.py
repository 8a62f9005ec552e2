"""Which keys matter to which verb and stage; a key that was given in vain is named in one line."""

from typing import Any

from danlu.core import schema

_MODEL = ("model", "quantization", "adapter")
OWNERS: dict[str, tuple[str, ...]] = {
    "train": ("run", *_MODEL, "data", "engine"),
    "plan": ("run", *_MODEL, "data", "engine"),
    "export": (*_MODEL, "export"),
    "chat": (*_MODEL, "generation"),
    "eval": (*_MODEL, "evaluation", "generation", "data"),
}
BESIDES: dict[str, set[str]] = {
    "export": {"template", "tool_format"},
    "chat": {"template", "default_system", "enable_thinking", "seed"},
    "eval": {"stage", "seed"},
}
"""Keys of other owners that a verb reads too."""


def idle_notices(values: dict[str, Any], origins: dict[str, str], verb: str, stage: str) -> list[str]:
    """Return one line for each reason why given keys have no effect in this run."""
    if verb not in OWNERS:
        return []
    reasons: dict[str, list[str]] = {}
    for key in values:
        reason = _reason(key, values, verb, stage)
        if reason:
            reasons.setdefault(reason, []).append(f"{key} ({origins[key]})")
    return [f"without effect {reason}: {', '.join(names)}" for reason, names in reasons.items()]


def _reason(key: str, values: dict[str, Any], verb: str, stage: str) -> str:
    spec = schema.keys()[key]
    owner = spec["x-owner"]
    stages = schema.stages_of(spec)
    if stages and stage not in stages:
        return f"in stage {stage} (a key of stage {' and '.join(stages)})"
    if not _read_by(key, owner, values, verb):
        return f"in `danlu {verb}`"
    if verb not in ("train", "plan"):
        return ""
    if stage in spec.get("x-idle-stages", ()):
        return f"in stage {stage}"
    for other, wanted in spec.get("x-only-with", {}).items():
        if not _meets(values.get(other, schema.keys()[other].get("default")), wanted):
            return f"unless {other} is {' or '.join('set' if one is True else str(one) for one in wanted)}"
    return ""


def _read_by(key: str, owner: str, values: dict[str, Any], verb: str) -> bool:
    if owner == "generation" and verb in ("train", "plan"):
        samples = values.get("stage", "sft") in schema.sampling_stages()
        return samples or bool(values.get("predict_with_generate") or values.get("do_predict"))
    return owner.startswith("stage:") or owner in OWNERS[verb] or key in BESIDES.get(verb, ())


def _meets(value: Any, wanted: list[Any]) -> bool:
    """Return whether a key has one of the wanted values, a list when one of its parts has."""
    parts = value if isinstance(value, list | tuple) else [value]
    return any(bool(value) and value != "no" if one is True else one in parts for one in wanted)
