"""`danlu data judge INPUT ... OUTPUT.jsonl --url URL --model NAME`: let a model choose between answers."""

import sys
from collections.abc import Sequence

from danlu.cli.data_words import options, read_words
from danlu.data.judge.config import JudgeConfig

USAGE = """usage: danlu data judge INPUT ... OUTPUT.jsonl --url http://HOST:PORT/v1 --model NAME [--key value ...]
       danlu data judge INPUT ... OUTPUT.jsonl --reward_model FOLDER [--key value ...]

Shows every two answers to a prompt to a judge behind an OpenAI-compatible URL, in both orders. Where it prefers the
same answer twice, a preference pair is written; all else is left out, and the ledger says why. A run that was stopped
goes on where it was: no verdict is asked for twice.
"""


def main(argv: Sequence[str]) -> int:
    """Judge and print what came of it."""
    if not argv or {"-h", "--help"} & set(argv):
        print("\n".join([USAGE, *options(JudgeConfig)]), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    config = read_words(JudgeConfig, argv, ("input", "output"))
    # Imported here so that a mistake in the words is told at once.
    from danlu.data.judge.run import judge

    score = None
    if config.reward_model:
        from danlu.evaluation.score_answers import answer_scorer

        score = answer_scorer(config.reward_model, template=config.template, cutoff_len=config.cutoff_len)
    counts = judge(config, score=score)
    total = max(counts.total(), 1)
    print(f"{counts.total()} pairs: " + ", ".join(
        f"{number} {name} ({100 * number / total:.3g} %)" for name, number in counts.most_common()))
    print(f"wrote {config.output}: {counts['judged']} rows, data set {config.set_name}; ledger {config.ledger_path}")
    return 0
