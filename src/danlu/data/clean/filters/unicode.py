"""Normalisation of Unicode form, width, control characters and white space."""

import re
import unicodedata
from typing import Literal

from pydantic import Field

from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, change

FULL_TO_HALF = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
ALNUM_TO_HALF = {code: half for code, half in FULL_TO_HALF.items() if chr(half).isalnum() or half == 0x20}
HALF_TO_FULL = {half: full for full, half in FULL_TO_HALF.items() if half != 0x20 and not chr(half).isalnum()}
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
LINE_ENDS = re.compile("\r\n?|\u0085|\u2028|\u2029")
BLANK_ENDS = re.compile("(?<![ \t])[ \t]+(?=\n|\\Z)")
BLANK_LINES = re.compile("\n{4,}")


@FILTERS.register("unicode")
class Unicode(Filter):
    """Rewrites text to one Unicode form and takes out what nobody can see.

    Width `half` turns full-width letters, digits, marks and the ideographic space into ASCII; `half_letters` leaves the
    marks (，。！ and so on) as Chinese writes them; `full_marks` does that and turns ASCII marks between Chinese signs
    into full-width ones. Joiners (U+200C, U+200D) stay: Indic scripts and emoji need them.
    """

    edits = True

    form: Literal["NFC", "NFKC", "none"] = Field("NFC", description="Unicode normal form.")
    width: Literal["keep", "half", "half_letters", "full_marks"] = Field("half_letters", description="Width of signs.")
    controls: bool = Field(True, description="Take out control characters other than tab and line feed.")
    invisible: bool = Field(True, description="Take out zero-width and direction marks, soft hyphens and byte marks.")
    spaces: bool = Field(True, description="Turn blanks of other widths into plain ones, and end lines with \\n alone.")
    trim: bool = Field(False, description="Cut blanks at line ends, and more than two blank lines in a row.")

    def judge(self, text: str) -> Verdict:
        if text.isascii() and not self.trim and text.isprintable():
            return KEEP
        done: list[str] = []
        for name, step in (("line ends and blanks", self._blanks), ("control characters", self._controls),
                           ("invisible characters", self._invisible), ("Unicode form", self._form),
                           ("width", self._width), ("blanks at line ends", self._trim)):
            after = step(text)
            if after != text:
                done.append(name)
                text = after
        return change(text, done[0] if len(done) == 1 else "several", ", ".join(done)) if done else KEEP

    def _blanks(self, text: str) -> str:
        return SPACES.sub(" ", LINE_ENDS.sub("\n", text)) if self.spaces else text

    def _controls(self, text: str) -> str:
        return CONTROLS.sub("", text) if self.controls else text

    def _invisible(self, text: str) -> str:
        return INVISIBLE.sub("", text) if self.invisible else text

    def _form(self, text: str) -> str:
        return text if self.form == "none" else unicodedata.normalize(self.form, text)

    def _width(self, text: str) -> str:
        if self.width == "keep":
            return text
        if self.width == "half":
            return text.translate(FULL_TO_HALF)
        text = text.translate(ALNUM_TO_HALF)
        return BETWEEN_HAN.sub(_full, text) if self.width == "full_marks" else text

    def _trim(self, text: str) -> str:
        return BLANK_LINES.sub("\n\n\n", BLANK_ENDS.sub("", text)) if self.trim else text


BETWEEN_HAN = re.compile("(?<=[\u3400-\u9fff])[,.!?;:](?=[\u3400-\u9fff\\s]|$)")


def _full(match: re.Match[str]) -> str:
    return "。" if match[0] == "." else match[0].translate(HALF_TO_FULL)
