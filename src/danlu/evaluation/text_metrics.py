"""BLEU-4 and ROUGE of an answer against its reference, on characters and Chinese words alike. Knows no model.

    BLEU-4   Papineni et al. 2002, on characters, smoothing 3 of Chen and Cherry 2014
    ROUGE    Lin 2004, F1 of ROUGE-1, ROUGE-2, ROUGE-L on words as jieba cuts them
"""

from collections.abc import Sequence
from typing import Any

from danlu.core.errors import CapabilityError

NAMES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
SHORTEST = 4  # characters: BLEU-4 needs one 4-gram


class TextMetrics:
    """Scores pairs of texts; loads the libraries of the extra `eval` when it is made."""

    def __init__(self) -> None:
        try:
            import jieba
            from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
            from rouge_chinese import Rouge
        except ImportError as error:
            raise CapabilityError(f"BLEU and ROUGE need the package {error.name}", where="predict_with_generate",
                                  fix="pip install 'danlu[eval]'") from error
        jieba.setLogLevel("WARNING")
        self._cut, self._rouge = jieba.lcut, Rouge()
        self._bleu, self._smoothing = sentence_bleu, SmoothingFunction().method3

    def score(self, prediction: str, reference: str) -> dict[str, float]:
        """Return the four metrics of one pair, each from 0 to 100."""
        characters = [list(reference)], list(prediction)
        bleu = self._bleu(*characters, smoothing_function=self._smoothing) if prediction and reference else 0.0
        return {"bleu-4": 100 * float(bleu)} | self._rouge_f1(prediction, reference)

    def mean(self, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Return the means over (prediction, reference) pairs, rounded to four places."""
        rows = [self.score(prediction, reference) for prediction, reference in pairs]
        return {name: round(sum(row[name] for row in rows) / max(len(rows), 1), 4) for name in NAMES}

    def _rouge_f1(self, prediction: str, reference: str) -> dict[str, float]:
        texts = [" ".join(self._cut(text)).strip() for text in (prediction, reference)]
        if not all(text.split() for text in texts):
            return dict.fromkeys(NAMES[1:], 0.0)
        scores: dict[str, Any] = self._rouge.get_scores(*texts)[0]
        return {name: 100 * float(scores[name]["f"]) for name in NAMES[1:]}
