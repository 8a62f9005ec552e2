"""The base of every Config: frozen, strict about unknown keys, each field described with its unit."""

from pydantic import BaseModel, ConfigDict


class StrictConfig(BaseModel):
    """A frozen set of flat keys owned by one part of danlu."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
