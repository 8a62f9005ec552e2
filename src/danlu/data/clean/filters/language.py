"""Which language a text is in, told by the shares of scripts among its letters; no model is needed."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from danlu.core.key_types import split_commas
from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, drop
from danlu.data.clean.measures import HAN_SIGN, LATIN, count, measure, share

Language = Literal["zh", "en"]


@FILTERS.register("language")
class ByScript(Filter):
    """Drops rows whose letters are mostly of other scripts: zh is Han signs, en is Latin letters.

    Kana count as Japanese, and Han signs beside much kana too, so Japanese is not taken for Chinese. French or German
    are Latin letters as English is: scripts cannot tell them apart; `min_stop_words` of `gopher_quality` can.
    """

    keep: Annotated[tuple[Language, ...], BeforeValidator(split_commas)] = Field(
        ("zh", "en"), min_length=1, description="Languages to keep.")
    min_share: float = Field(0.5, ge=0, le=1, description="Least share of the letters that these languages make up.")
    max_kana: float = Field(0.1, ge=0, le=1, description="Share of kana above which Han signs count as Japanese.")

    def judge(self, text: str) -> Verdict:
        letters = measure(text).num_letters
        if not letters:
            return drop("no letters")
        kana = share(sum("\u3040" <= sign <= "\u30ff" for sign in text), letters)
        shares = {"zh": 0.0 if kana > self.max_kana else share(count(HAN_SIGN.finditer(text)), letters),
                  "en": share(count(LATIN.finditer(text)), letters)}
        kept = sum(shares[name] for name in self.keep)
        if kept >= self.min_share:
            return KEEP
        return drop(f"less than {self.min_share:g} of the letters are {' or '.join(self.keep)}",
                    ", ".join(f"{name} {value:.2f}" for name, value in shares.items()))
