"""Rules of length, in characters, words and lines."""

from typing import Self

from pydantic import Field, model_validator

from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict
from danlu.data.clean.measures import measure


@FILTERS.register("length")
class Length(Filter):
    """Drops rows that are too short or too long."""

    min_chars: int = Field(1, ge=0, description="Fewest characters, without white space.")
    max_chars: int | None = Field(None, ge=1, description="Most characters, without white space.")
    min_words: int | None = Field(None, ge=0, description="Fewest words; a Chinese sign is one.")
    max_words: int | None = Field(None, ge=1, description="Most words; a Chinese sign is one.")
    max_line_chars: int | None = Field(None, ge=1, description="Most characters of one line.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for unit in ("chars", "words"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}")
        return self

    def judge(self, text: str) -> Verdict:
        found = measure(text)
        verdict = self.outside("characters", found.num_visible, self.min_chars, self.max_chars)
        if verdict is None and (self.min_words is not None or self.max_words is not None):
            verdict = self.outside("words", len(found.words), self.min_words, self.max_words)
        if verdict is None and self.max_line_chars is not None:
            longest = max(map(len, found.lines), default=0)
            verdict = self.outside("characters of a line", longest, None, self.max_line_chars)
        return verdict or KEEP
