"""`danlu data dedup INPUT ... OUTPUT.jsonl`: drop duplicate and near-duplicate rows."""

import sys
from collections.abc import Sequence

from danlu.cli.data_words import options, read_words
from danlu.data.dedup.config import DedupConfig

USAGE = """usage: danlu data dedup INPUT ... OUTPUT.jsonl [--key value ...]

Drops rows whose text is equal to an earlier one's, then rows that share most of their n-grams with another
(MinHash, checked by the true Jaccard similarity). Of each cluster one row stays, as it is. Similarity is passed on: a
row like a row that is like the one kept goes too. A ledger says for every dropped row which one was kept instead.
"""


def main(argv: Sequence[str]) -> int:
    """Drop duplicates and print what was found."""
    if not argv or {"-h", "--help"} & set(argv):
        print("\n".join([USAGE, *options(DedupConfig)]), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_words(DedupConfig, argv, ("input", "output"))
    # Imported here so that a mistake in the words is told at once.
    from danlu.data.dedup.run import dedup

    report = dedup(config)
    print("\n".join(report.lines()))
    print(f"wrote {config.output}: {report.counts['kept']} rows; ledger {config.ledger_path}")
    return 0
