"""What a cleaning rule is: options and one function, from a text to keep, drop or change, with the reason.

A rule is one class in `danlu.data.clean.filters`, registered under the name that recipes use. It knows nothing of rows,
files or processes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList
from danlu.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a text. `reason` is counted, so it holds no values; `detail` holds them."""

    action: Literal["keep", "drop", "change"]
    reason: str = ""
    detail: str = ""
    text: str = ""


KEEP = Verdict("keep")


def drop(reason: str, detail: str = "") -> Verdict:
    """Say that the row goes."""
    return Verdict("drop", reason, detail)


def change(text: str, reason: str, detail: str = "") -> Verdict:
    """Say that the text becomes `text`."""
    return Verdict("change", reason, detail, text)


class Filter(StrictConfig, ABC):
    """Base of every rule. `edits` rules see one field at a time; the others the row's fields, joined by line breaks."""

    edits: ClassVar[bool] = False
    finds_secrets: ClassVar[bool] = False
    """Whether what the rule found may not be repeated in the ledger."""

    only: CommaList = Field((), description="Look at these columns or roles only; empty: at every text.")
    scope: Literal["row", "field"] = Field(
        "row", description="Judge the texts of a row together, or each by itself.")

    @abstractmethod
    def judge(self, text: str) -> Verdict:
        """Return the verdict on one text."""

    def outside(self, name: str, value: float, low: float | None, high: float | None) -> Verdict | None:
        """Return the verdict that drops when `value` leaves low..high, None otherwise. None is no bound."""
        if low is not None and value < low:
            return drop(f"{name} below {low:g}", f"{value:.4g}")
        if high is not None and value > high:
            return drop(f"{name} above {high:g}", f"{value:.4g}")
        return None


FILTERS: Registry[type[Filter]] = Registry("filter", "danlu.data.clean.filters")
