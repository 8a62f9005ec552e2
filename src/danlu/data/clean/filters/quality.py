"""Rules of prose: Gopher's (Rae et al. 2021, arXiv:2112.11446, A.1.1) and C4's (Raffel et al. 2020, 2.2)."""

import re

from pydantic import Field

from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, change, drop
from danlu.data.clean.measures import Measures, measure, share

STOP_WORDS_EN = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
STOP_SIGNS_ZH = frozenset("的了是在和不有我这人")
BULLETS = tuple("•●○▪▫■□◆◇‣⁃·*-")
ELLIPSES = ("...", "…", "。。。")
SENTENCE_ENDS = tuple(".!?\"'”’。！？；…」』）)")
SENTENCE_MARKS = re.compile(r"(?<=[^.!?。！？])[.!?。！？]+")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@FILTERS.register("gopher_quality")
class GopherQuality(Filter):
    """Drops rows that do not look like prose. Stop words are also counted in Chinese; word length only elsewhere."""

    min_words: int | None = Field(50, ge=0, description="Fewest words; a Chinese sign is one.")
    max_words: int | None = Field(100_000, ge=1, description="Most words; a Chinese sign is one.")
    min_mean_word: float | None = Field(3, ge=0, description="Least mean length of words, in letters; not for Chinese.")
    max_mean_word: float | None = Field(10, ge=0, description="Greatest mean length of words; not for Chinese.")
    max_symbol_words: float | None = Field(0.1, ge=0, description="Most `#` and `...` signs, per word.")
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1, description="Most lines that begin with a bullet.")
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1, description="Most lines that end in an ellipsis.")
    min_letter_words: float | None = Field(0.8, ge=0, le=1, description="Fewest words with a letter in them.")
    min_stop_words: int = Field(2, ge=0, description="Fewest different stop words, English or Chinese.")

    def judge(self, text: str) -> Verdict:
        found = measure(text)
        words, lines = found.words, found.lines
        number = len(words)
        spaced = [] if found.is_cjk else words
        mean = share(sum(map(len, spaced)), len(spaced))
        is_spaced = bool(spaced)
        ellipses = text.count("...") + text.count("…")
        checks = (
            ("words", number, self.min_words, self.max_words),
            ("mean word length", mean, self.min_mean_word if is_spaced else None, self.max_mean_word),
            ("# per word", share(text.count("#"), number), None, self.max_symbol_words),
            ("ellipses per word", share(ellipses, number), None, self.max_symbol_words),
            ("share of bullet lines", share(sum(line.startswith(BULLETS) for line in lines), len(lines)), None,
             self.max_bullet_lines),
            ("share of lines that end in an ellipsis", share(sum(line.endswith(ELLIPSES) for line in lines),
                                                             len(lines)), None, self.max_ellipsis_lines),
            ("share of words with a letter", share(sum(any(map(str.isalpha, word)) for word in words), number),
             self.min_letter_words, None),
            ("different stop words", _stop_words(found), self.min_stop_words, None))
        return next((verdict for check in checks if (verdict := self.outside(*check))), KEEP)


def _stop_words(found: Measures) -> int:
    words = {word.lower() for word in found.words}
    return len(words & STOP_WORDS_EN) + len(words & STOP_SIGNS_ZH)


@FILTERS.register("c4")
class C4(Filter):
    """Takes lines out that are no sentences, as C4 does, and drops rows with too few left or with filler text."""

    edits = True

    end_marks: bool = Field(True, description="Take out lines that do not end in a mark of a sentence.")
    min_words: int = Field(3, ge=0, description="Take out lines of fewer words.")
    min_sentences: int = Field(5, ge=0, description="Fewest sentences of what is left.")
    drop_braces: bool = Field(True, description="Drop rows that hold a curly brace: likely code.")

    def judge(self, text: str) -> Verdict:
        lowered = text.lower()
        if "lorem ipsum" in lowered:
            return drop("filler text (lorem ipsum)")
        if self.drop_braces and "{" in text:
            return drop("curly brace")
        lines = text.splitlines()
        kept = [line for line in lines if not line.strip() or self._is_sentence(line.strip())]
        result = "\n".join(kept).strip()
        sentences = len(SENTENCE_MARKS.findall(result))
        if sentences < self.min_sentences:
            return drop(f"fewer than {self.min_sentences} sentences", str(sentences))
        if len(kept) == len(lines):
            return KEEP
        return change(result, "lines that are no sentences", f"{len(lines) - len(kept)} lines")

    def _is_sentence(self, line: str) -> bool:
        lowered = line.lower()
        if "javascript" in lowered or any(phrase in lowered for phrase in POLICY):
            return False
        if self.end_marks and (not line.endswith(SENTENCE_ENDS) or line.endswith("...")):
            return False
        return len(measure(line).words) >= self.min_words
