"""Shares of symbols, digits, white space and letters among the characters."""

import unicodedata

from pydantic import Field

from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict
from danlu.data.clean.measures import measure, share

PROSE_MARKS = frozenset(",.;:!?'\"()-\u2013\u2014\u2018\u2019\u201c\u201d\u2026，。；：！？、（）《》【】「」")


@FILTERS.register("characters")
class Characters(Filter):
    """Drops rows of too many symbols, digits or blanks, or too few letters. Marks of prose are no symbols."""

    max_symbols: float | None = Field(0.3, ge=0, le=1, description="Most symbols, as a share of visible characters.")
    max_digits: float | None = Field(0.5, ge=0, le=1, description="Most digits, as a share of visible characters.")
    max_spaces: float | None = Field(0.5, ge=0, le=1, description="Most white space, as a share of all characters.")
    min_letters: float | None = Field(None, ge=0, le=1, description="Fewest letters, as a share of visible ones.")

    def judge(self, text: str) -> Verdict:
        found = measure(text)
        visible = found.num_visible
        digits = sum(map(str.isdigit, text))
        checks = (
            ("share of symbols", share(_symbols(text), visible), None, self.max_symbols),
            ("share of digits", share(digits, visible), None, self.max_digits),
            ("share of white space", share(len(text) - visible, len(text)), None, self.max_spaces),
            ("share of letters", share(found.num_letters, visible), self.min_letters, None))
        return next((verdict for check in checks if (verdict := self.outside(*check))), KEEP)


def _symbols(text: str) -> int:
    """Return the number of signs of Unicode classes P and S that are no marks of prose."""
    others = [sign for sign in text if not sign.isalnum() and not sign.isspace() and sign not in PROSE_MARKS]
    return sum(unicodedata.category(sign)[0] in "PS" for sign in others)
