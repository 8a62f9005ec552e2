"""Numbers of the evaluation: text metrics and answer quality, by hand."""

import pytest

from danlu.evaluation.answer_quality import describe_answers, repetition
from danlu.evaluation.text_metrics import NAMES, TextMetrics
from danlu.generation.base import Completion


def test_equal_texts_score_a_hundred_and_strangers_nothing() -> None:
    metrics = TextMetrics()
    for text in ("the sky is blue today", "今天的天空是蓝色的"):
        assert metrics.score(text, text) == pytest.approx(dict.fromkeys(NAMES, 100))
    strangers = metrics.score("cat", "天空是蓝色的")
    assert strangers["rouge-1"] == strangers["rouge-l"] == 0 and strangers["bleu-4"] < 1


def test_rouge_by_hand() -> None:
    """Words a b c d against a b x y: 2 of 4 unigrams, 1 of 3 bigrams, longest common run 2 of 4, F1 alike."""
    scores = TextMetrics().score("alpha beta gamma delta", "alpha beta xi psi")
    assert scores["rouge-1"] == pytest.approx(50) and scores["rouge-l"] == pytest.approx(50)
    assert scores["rouge-2"] == pytest.approx(100 / 3, abs=1e-3)


def test_bleu_by_hand() -> None:
    """Characters abcde against abcdf: precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty.

    Their geometric mean is (4/5 * 3/4 * 2/3 * 1/2) ** (1/4) = 0.2 ** 0.25.
    """
    assert TextMetrics().score("abcde", "abcdf")["bleu-4"] == pytest.approx(100 * 0.2**0.25)


def test_empty_answers_score_nothing_and_count() -> None:
    """One perfect pair and one empty answer: every mean is 50."""
    means = TextMetrics().mean([("天空是蓝色的", "天空是蓝色的"), ("", "蓝色")])
    assert means == dict.fromkeys(NAMES, 50.0)


def test_repetition_by_hand() -> None:
    """1 2 3 4 1 2 3 4: five 4-grams, the last equals the first, so 1 - 4/5; a constant run of 8: 1 - 1/5."""
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(0.2)
    assert repetition([7] * 8) == pytest.approx(0.8)
    assert repetition([1, 2, 3]) == 0


def test_answers_that_never_end_are_counted() -> None:
    answers = [Completion((5, 2), "a", "stop"), Completion((7,) * 8, "b", "length")]
    assert describe_answers(answers) == {
        "repetition": 0.4, "missing_eos": 0.5, "answer_tokens": 5.0, "answer_tokens_max": 8.0}
