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
