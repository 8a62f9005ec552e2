"""Which column or tag of a data set holds what, as its entry in dataset_info.json says."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column holds what. None means undeclared: the format looks for its usual names.

    A declared mapping is complete: a column or tag that it does not list is absent.
    """

    columns: Mapping[str, str | None] | None = None
    tags: Mapping[str, str | None] | None = None
    text_column: str | None = None

    def column(self, role: str, *usual: str) -> tuple[str, ...]:
        """Return the names to look for `role` under, the best first."""
        if self.columns is None:
            return usual
        name = self.columns.get(role)
        return (name,) if name else ()
