"""How answers read, whatever they say: do they end, do they go in circles, how long are they."""

from collections.abc import Sequence

from danlu.generation.base import Completion

NGRAM = 4


def repetition(ids: Sequence[int]) -> float:
    """Return the share of token 4-grams that occurred before in the same answer: 1 - distinct / all."""
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def describe_answers(completions: Sequence[Completion]) -> dict[str, float]:
    """Return means over the answers: repetition, share that never ended, tokens; and the longest."""
    count = max(len(completions), 1)
    lengths = [len(one.ids) for one in completions]
    return {
        "repetition": round(sum(repetition(one.ids) for one in completions) / count, 4),
        "missing_eos": round(sum(one.finish_reason == "length" for one in completions) / count, 4),
        "answer_tokens": round(sum(lengths) / count, 2),
        "answer_tokens_max": float(max(lengths, default=0)),
    }
