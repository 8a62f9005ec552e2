"""`danlu train FILE.yaml [key=value ...]`: train, evaluate, predict."""

import sys
from collections.abc import Sequence

from danlu.cli.key_help import key_table
from danlu.cli.run_keys import read_run_config

USAGE = """usage: danlu train FILE.yaml [key=value ...] [--key value ...]
       danlu train --key value ...

Keys come from a YAML or JSON file and from the command line, which wins. Dashes and underscores in names are equal.
Older and foreign names of keys work too; `danlu schema KEY` says all about one key."""
OWNERS = ("run", "model", "quantization", "adapter", "data", "engine", "generation")


def main(argv: Sequence[str]) -> int:
    """Check the keys without torch, then run the recipe."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(USAGE, key_table(OWNERS), sep="\n", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_run_config(argv, "train")
    # Imported last: torch takes seconds, and the notices are read meanwhile.
    from danlu.recipe import train

    train(config)
    return 0
