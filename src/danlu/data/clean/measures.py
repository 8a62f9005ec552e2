"""Lines, words and scripts of a text, found once and shared by the rules. Chinese and Japanese signs are words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
CJK_SIGN = re.compile(f"[{CJK}]")
HAN_SIGN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
WORD = re.compile(f"[{CJK}]|(?:(?![{CJK}])\\w)+(?:['\u2019](?:(?![{CJK}])\\w)+)*")


@dataclass(frozen=True)
class Measures:
    """A text with what the rules ask of it."""

    text: str

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, stripped."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Blocks between blank lines, stripped."""
        return [block.strip() for block in re.split(r"\n[ \t\r]*\n", self.text) if block.strip()]

    @cached_property
    def words(self) -> list[str]:
        """Words, in order; a Chinese or Japanese sign is one."""
        return WORD.findall(self.text)

    @cached_property
    def num_visible(self) -> int:
        """Characters that are no white space."""
        return sum(map(len, self.text.split()))

    @cached_property
    def num_letters(self) -> int:
        """Letters of all scripts."""
        return sum(map(str.isalpha, self.text))

    @cached_property
    def cjk_share(self) -> float:
        """Share of Chinese and Japanese signs among the letters."""
        return len(CJK_SIGN.findall(self.text)) / self.num_letters if self.num_letters else 0.0

    @property
    def is_cjk(self) -> bool:
        """Whether at least half of the letters are Chinese or Japanese signs."""
        return self.cjk_share >= 0.5


@lru_cache(maxsize=16)
def measure(text: str) -> Measures:
    """Return the measures of a text; those of the last few texts are kept."""
    return Measures(text)


def share(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0


def count(matches: Iterable[object]) -> int:
    """Return how many there are."""
    return sum(1 for _ in matches)
