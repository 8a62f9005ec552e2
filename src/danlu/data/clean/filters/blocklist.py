"""Words and phrases that a text may not hold, given in the recipe or in files of one phrase a line."""

import re
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.core.errors import ConfigError
from danlu.core.key_types import CommaList
from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, change, drop
from danlu.data.clean.measures import CJK


@FILTERS.register("blocklist")
class Blocklist(Filter):
    """Drops rows with a listed phrase, writes over it, or takes out its line. Case does not matter.

    A phrase matches whole words: `ass` is not found in `class`. Chinese and Japanese signs need no word border.
    """

    edits = True

    words: CommaList = Field((), description="Phrases.")
    files: CommaList = Field((), description="Files with one phrase a line; lines that begin with # are comments.")
    action: Literal["drop", "mask", "drop_line"] = Field("drop", description="What happens to a text with a phrase.")
    replacement: str = Field("***", description="What `mask` writes over a phrase.")
    min_count: int = Field(1, ge=1, description="Number of matches from which the rule acts.")

    @field_validator("files")
    @classmethod
    def _exist(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        for file in files:
            if not Path(file).is_file():
                raise ValueError(f"no file {file}")
        return files

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.words and not self.files:
            raise ValueError("words or files is needed")
        return self

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """All phrases, the longest first, each once."""
        listed = [word.strip() for word in self.words]
        for file in self.files:
            try:
                lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ConfigError(f"is not UTF-8 at byte {error.start}", where=file, fix="save it as UTF-8") from None
            listed += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return tuple(sorted(dict.fromkeys(phrase for phrase in listed if phrase), key=len, reverse=True))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_bordered, self.phrases)) or r"(?!)", re.IGNORECASE)

    def judge(self, text: str) -> Verdict:
        found = [match[0] for match in self._pattern.finditer(text)]
        if len(found) < self.min_count:
            return KEEP
        detail = ", ".join(dict.fromkeys(found))
        if self.action == "drop":
            return drop("listed phrase", detail)
        if self.action == "mask":
            return change(self._pattern.sub(lambda match: self.replacement, text), "listed phrase", detail)
        kept = [line for line in text.split("\n") if not self._pattern.search(line)]
        return change("\n".join(kept), "line with a listed phrase", detail)


def _bordered(phrase: str) -> str:
    """Return the phrase as a pattern that begins and ends at borders of words where its own ends are of words."""
    inner = r"\s+".join(map(re.escape, phrase.split()))
    before = rf"(?:(?<!\w)|(?<=[{CJK}]))" if _needs_border(phrase[0]) else ""
    after = rf"(?:(?!\w)|(?=[{CJK}]))" if _needs_border(phrase[-1]) else ""
    return before + inner + after


def _needs_border(sign: str) -> bool:
    return (sign.isalnum() or sign == "_") and not re.match(f"[{CJK}]", sign)
