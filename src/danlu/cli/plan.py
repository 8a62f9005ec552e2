"""`danlu plan FILE.yaml [key=value ...]`: what `danlu train` would do with the same words, and need."""

import sys
from collections.abc import Iterable, Sequence

from danlu.cli.key_help import TITLES, shown
from danlu.cli.run_keys import read_run_config
from danlu.core import schema

USAGE = """usage: danlu plan FILE.yaml [key=value ...]
       danlu plan --given FILE.yaml ...   show only the keys that were given

Prints every key with its value and where it came from, then data, steps, parameters, memory and disk. Writes nothing
but the cache of encoded data. Exit code 2 when the run cannot work."""


def main(argv: Sequence[str]) -> int:
    """Print the keys at once, then what takes longer to know."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_run_config([word for word in argv if word != "--given"], "plan")
    from danlu.run_config import SECRETS

    only_given = "--given" in argv
    keys = [(key, value) for key, value in config.flat().items()
            if not only_given or config.origins.get(key, "default") != "default"]
    for owner in dict.fromkeys(_owner(key) for key, _ in keys):
        _print_table(TITLES.get(owner, owner), (
            (key, "given, not shown" if key in SECRETS and value else shown(value), config.origins.get(key, "default"))
            for key, value in keys if _owner(key) == owner))
    # Imported last: torch takes seconds, and the keys are read meanwhile.
    from danlu.plan import plan

    for section in plan(config):
        _print_table(section.title, section.rows)
    return 0


def _owner(key: str) -> str:
    owner: str = schema.keys()[key]["x-owner"]
    return owner


def _print_table(title: str, rows: Iterable[tuple[str, ...]]) -> None:
    listed = list(rows)
    widths = [max((len(row[column]) for row in listed), default=0) for column in range(len(listed[0]) if listed else 0)]
    print(f"{title}:")
    for row in listed:
        print("  " + "  ".join(cell.ljust(min(width, 48)) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)
