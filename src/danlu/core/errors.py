"""Errors a user can mend: what is wrong, where, and what to do next. Exit code 2, no traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake the reader of the message can correct."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(self.render())

    def render(self) -> str:
        """Return `where: what` on one line and the fix below it."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class ConfigError(UserError):
    """A key or value of the run configuration is wrong."""


class DataError(UserError):
    """A file, row or column of a data set is wrong."""


class OutsideError(UserError):
    """Something that a training step depends on failed before the step changed anything: what is learnt is whole."""


class CapabilityError(UserError):
    """A valid request that this machine, model or build cannot serve."""


def did_you_mean(name: str, known: Iterable[str], *, list_all: bool = True) -> str:
    """Return `did you mean "beta"? known: alpha, beta` for an unknown name."""
    names = sorted(set(known))
    close = sorted(get_close_matches(name, names, n=4, cutoff=0.6), key=lambda known: _typos(name, known))
    parts = [f'did you mean "{close[0]}"?'] if close else []
    if list_all and names:
        parts.append(f"known: {', '.join(names)}")
    return " ".join(parts)


def _typos(written: str, known: str) -> int:
    """Return how many letters must be changed, added, dropped or swapped with their neighbour (OSA distance)."""
    rows = [list(range(len(known) + 1))]
    for i, letter in enumerate(written, 1):
        row = [i]
        for j, other in enumerate(known, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == known[j - 2] and written[i - 2] == other:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]
