"""Rules of repetition, after Gopher (Rae et al. 2021, arXiv:2112.11446, table A1)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict
from danlu.data.clean.measures import measure, share

CJK_SIGNS_PER_WORD = 2


@FILTERS.register("gopher_repetition")
class GopherRepetition(Filter):
    """Drops rows that repeat lines, paragraphs or word n-grams.

    Where most letters are Chinese or Japanese, an n-gram is 2n signs, as a word is about two signs there.
    """

    max_duplicate_lines: float | None = Field(0.30, ge=0, le=1, description="Share of lines that occurred before.")
    max_duplicate_line_chars: float | None = Field(0.20, ge=0, le=1, description="The same, in characters.")
    max_duplicate_paragraphs: float | None = Field(0.30, ge=0, le=1, description="Share of repeated paragraphs.")
    max_duplicate_paragraph_chars: float | None = Field(0.20, ge=0, le=1, description="The same, in characters.")
    top_ngrams: dict[int, float] = Field(
        {2: 0.20, 3: 0.18, 4: 0.16}, description="n -> most characters that the commonest n-gram may make up.")
    duplicate_ngrams: dict[int, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="n -> most characters that n-grams found more than once may cover.")
    min_words: int = Field(100, ge=0, description="Texts of fewer words are judged by `max_short` alone: in a few "
                           "sentences an n-gram said twice is already a great part.")
    max_short: float | None = Field(
        0.5, ge=0, le=1, description="Most characters that repeated 5-grams may cover in a shorter text.")
    scope: Literal["row", "field"] = Field(
        "field", description="Judge each text of a row by itself, as answers repeat their questions, or all together.")

    def judge(self, text: str) -> Verdict:
        found = measure(text)
        for name, parts, most, most_chars in (
                ("line", found.lines, self.max_duplicate_lines, self.max_duplicate_line_chars),
                ("paragraph", found.paragraphs, self.max_duplicate_paragraphs, self.max_duplicate_paragraph_chars)):
            number, chars = _repeated(parts)
            verdict = self.outside(f"share of duplicate {name}s", share(number, len(parts)), None, most)
            verdict = verdict or self.outside(
                f"share of characters in duplicate {name}s", share(chars, sum(map(len, parts))), None, most_chars)
            if verdict:
                return verdict
        scale = CJK_SIGNS_PER_WORD if found.is_cjk else 1
        if len(found.words) >= self.min_words * scale:
            return self._by_ngrams(found.words, scale)
        covered = share(duplicate_ngram_chars(found.words, 5 * scale), sum(map(len, found.words)))
        return self.outside("share of characters in duplicate 5-grams", covered, None, self.max_short) or KEEP

    def _by_ngrams(self, words: Sequence[str], scale: int) -> Verdict:
        total = sum(map(len, words))
        for n, most in self.top_ngrams.items():
            covered = share(_top_ngram_chars(words, n * scale), total)
            if verdict := self.outside(f"share of characters in the commonest {n}-gram", covered, None, most):
                return verdict
        for n, most in self.duplicate_ngrams.items():
            covered = share(duplicate_ngram_chars(words, n * scale), total)
            if verdict := self.outside(f"share of characters in duplicate {n}-grams", covered, None, most):
                return verdict
        return KEEP


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts occurred before, and their characters."""
    seen: set[str] = set()
    number = chars = 0
    for part in parts:
        if part in seen:
            number, chars = number + 1, chars + len(part)
        seen.add(part)
    return number, chars


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _top_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters of the commonest n-gram times its count, 0 when none occurs twice."""
    counts = Counter(_ngrams(words, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0
    return max(sum(map(len, gram)) for gram, number in counts.items() if number == most) * most


def duplicate_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters of all words that lie in an n-gram seen before; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    chars = covered = 0
    for start, gram in enumerate(_ngrams(words, n)):
        if gram in seen:
            first = max(covered, start)
            chars += sum(map(len, words[first:start + n]))
            covered = start + n
        seen.add(gram)
    return chars
