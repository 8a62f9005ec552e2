"""Which language a text is in, by its letters: a rough count that needs no model."""

import re

SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple((name, re.compile(f"[{letters}]")) for name, letters in (
    ("ja", "\u3040-\u30ff"), ("ko", "\u1100-\u11ff\uac00-\ud7a3"), ("zh", "\u3400-\u4dbf\u4e00-\u9fff"),
    ("ru, uk, ...", "\u0400-\u04ff"), ("ar, fa, ...", "\u0600-\u06ff"), ("he", "\u0590-\u05ff"),
    ("el", "\u0370-\u03ff"), ("th", "\u0e00-\u0e7f"), ("hi, ...", "\u0900-\u097f")))
LATIN = re.compile("[A-Za-z\u00c0-\u024f]+")
ENGLISH = re.compile(
    r"\b(?:the|an?|of|to|and|in|is|are|was|were|be|it|that|this|for|with|on|as|you|i|your|what|how|not|can|do|have|has|"
    r"or|by|from|at|which|he|she|they|we|my|me|if|will|would|about)\b", re.IGNORECASE)
SAMPLE = 2000
A_WORD_SAYS = 2.5
"""Letters that one letter of Chinese, Japanese or Korean counts for: its words are that much shorter."""
DENSE = ("ja", "ko", "zh")
LEAST_ENGLISH = 0.12
LEAST_KANA = 0.05


def language_of(text: str) -> str:
    """Return the language that most letters of the first 2,000 characters are of.

    `en` is Latin script with enough of the commonest English words, `latin` is any other; `none` has no letters.
    """
    text = text[:SAMPLE]
    words = LATIN.findall(text)
    counts = {name: len(pattern.findall(text)) * (A_WORD_SAYS if name in DENSE else 1.0) for name, pattern in SCRIPTS}
    # Japanese is written with Chinese letters too; Chinese never with kana.
    if counts["ja"] > LEAST_KANA * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh")
    counts["latin"] = float(sum(map(len, words)))
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        return "none"
    if best != "latin":
        return best
    return "en" if len(ENGLISH.findall(text)) >= LEAST_ENGLISH * len(words) else "latin"
