"""Find the final answer in a text and compare it with a reference: numbers by value, words by spelling."""

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.(?=\s|$))?(?:\s*/\s*\d+)?(?<=[\d.])")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_AROUND = " \t\r\n.,;:!?\"'`$%。，；：！？“”‘’*"
MARK = "####"


def final_number(text: str) -> Fraction | None:
    """Return the number behind the last `####`, else in the last \\boxed{}, else the last in the text; None without.

    Thousands may be parted by commas; 1/2, 0.5 and .50 are equal.
    """
    for part, place in ((after_mark(text), 0), (boxed(text), 0), (text, -1)):
        numbers = [_value(one) for one in _NUMBER.findall(_plain(part or ""))]
        if found := [one for one in numbers if one is not None]:
            return found[place]
    return None


def final_text(text: str) -> str:
    """Return what stands behind the last `####`, else in the last \\boxed{}, else the whole text."""
    marked, in_box = after_mark(text), boxed(text)
    return marked if marked is not None else in_box if in_box is not None else text


def after_mark(text: str) -> str | None:
    """Return the rest of the line behind the last `####`."""
    _, mark, rest = text.rpartition(MARK)
    return rest.strip().split("\n")[0].strip() if mark else None


def boxed(text: str) -> str | None:
    """Return what the last \\boxed{...} holds, braces inside it matched."""
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for place in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[starts[-1]:place]
    return None


def spelling(text: str) -> str:
    """Return a text for comparison: case, runs of white space, and marks around it do not count."""
    plain = " ".join(text.casefold().split())
    return plain.strip(_AROUND) or plain


def whole_number(text: str) -> Fraction | None:
    """Return the value of a text that is one number and nothing else, currency and per cent signs aside."""
    bare = _plain(text.strip(" \t\r\n$%")).rstrip(".。 ")
    return _value(bare) if _NUMBER.fullmatch(bare) else None


def _plain(text: str) -> str:
    """Return the text with minus signs and fractions as keyboards write them."""
    return _FRACTION.sub(r"\1/\2", text.replace("\u2212", "-"))


def _value(written: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[,\s]|\.$", "", written))
    except (ValueError, ZeroDivisionError):
        return None
