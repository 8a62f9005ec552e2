"""`danlu data overlap TRAIN EVAL`: find evaluation rows inside training data."""

import sys
from collections.abc import Sequence

from danlu.cli.data_words import options, read_words

USAGE = """usage: danlu data overlap TRAIN EVAL [--key value ...]

Says for every evaluation row how much of it stands in the training data, and in which row of it. Exit code 0 whatever
is found; with --fail_above X exit code 1 when more than this share of the evaluation rows is contaminated.
"""


def main(argv: Sequence[str]) -> int:
    """Compare and print the report."""
    from danlu.data.overlap import OverlapConfig, find_overlap

    if not argv or {"-h", "--help"} & set(argv):
        print("\n".join([USAGE, *options(OverlapConfig)]), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_words(OverlapConfig, argv, ("train", "eval"))
    report = find_overlap(config)
    print("\n".join(report.lines()))
    if config.out:
        print(f"wrote {config.out}: {len(report.rows)} rows")
    if report.is_above_limit:
        print(f"{report.share:.2%} of the evaluation rows are contaminated, more than fail_above allows "
              f"({config.fail_above:.2%})", file=sys.stderr)
        return 1
    return 0
