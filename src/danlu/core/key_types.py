"""Types that several Configs share: lists written with commas."""

from typing import Annotated, Any

from pydantic import BeforeValidator


def split_commas(value: Any) -> Any:
    """Return `"a, b"` as `("a", "b")`; lists become tuples, None an empty tuple, anything else passes unchanged."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
FloatList = Annotated[tuple[float, ...], BeforeValidator(split_commas)]


def only_with(**conditions: Any) -> dict[str, Any]:
    """Mark a field as without effect unless each named key has one of the given values (for Field's extra).

    `only_with(finetuning_type="lora")`; a tuple lists several values; True stands for any value but none or false.
    """
    return {"x-only-with": {key: list(wanted) if isinstance(wanted, tuple) else [wanted]
                            for key, wanted in conditions.items()}}


def not_in(*stages: str) -> dict[str, Any]:
    """Mark a field as without effect in the named stages."""
    return {"x-idle-stages": list(stages)}
