"""`danlu data SUB ...`: look at, check and clean data. Chooses the sub-verb; each is imported when it is asked for."""

import sys
from collections.abc import Sequence
from importlib import import_module

from danlu.core.errors import UserError, did_you_mean

SUBS: dict[str, str] = {
    "lint": "find what is wrong in a data set, and mend it",
    "show": "show what is trained, token by token",
    "stats": "count rows, turns, characters, tokens and languages",
    "clean": "filter and mask rows by a recipe",
    "dedup": "remove duplicate and near-duplicate rows",
    "overlap": "find evaluation text inside training data",
    "judge": "let a model choose between answers: preference pairs",
}
"""Each sub-verb is the module `danlu.cli.data_<sub>` with `main(argv) -> exit code`."""


def main(argv: Sequence[str]) -> int:
    """Run one sub-verb."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] not in SUBS:
        raise UserError(f'unknown word "{words[0]}" after danlu data', fix=did_you_mean(words[0], SUBS))
    code: int = import_module(f"danlu.cli.data_{words[0]}").main(words[1:])
    return code


def _usage() -> str:
    lines = [f"  {name.ljust(max(map(len, SUBS)))}  {text}" for name, text in SUBS.items()]
    return "\n".join(["usage: danlu data SUB ...", "", *lines, "", "danlu data SUB --help says more."])
