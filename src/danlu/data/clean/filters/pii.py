"""Personal data written over: e-mail, phone, identity, bank card and address numbers, for China and the USA.

Numbers are read in ASCII digits, so `unicode` with width `half` or `half_letters` stands before this rule where text
may hold full-width digits.
"""

import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from danlu.core.key_types import split_commas
from danlu.data.clean.filter import FILTERS, KEEP, Filter, Verdict, change, drop

Kind = Literal["email", "cn_id", "bank_card", "cn_mobile", "cn_landline", "us_ssn", "us_phone", "ipv4"]
BEFORE, AFTER = r"(?<![0-9A-Za-z_.\-])", r"(?![0-9A-Za-z_]|[.\-][0-9])"
PATTERNS: dict[str, re.Pattern[str]] = {name: re.compile(pattern) for name, pattern in {
    "email": r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]{1,64}@"
             r"(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])",
    "cn_id": BEFORE + r"[1-9][0-9]{16}[0-9Xx]" + AFTER,
    "bank_card": BEFORE + r"(?:[2-6][0-9]{14,18}|[2-6][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?|"
                          r"3[47][0-9]{2}([ \-])[0-9]{6}\2[0-9]{5})" + AFTER,
    "cn_mobile": BEFORE + r"(?:\+?86[ \-]?)?1[3-9][0-9](?:[0-9]{8}|[ \-][0-9]{4}[ \-][0-9]{4})" + AFTER,
    "cn_landline": BEFORE + r"(?:\+?86[ \-]?)?0[1-9][0-9]{1,2}[ \-][2-9][0-9]{6,7}" + AFTER,
    "us_ssn": BEFORE + r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}" + AFTER,
    "us_phone": r"(?<![0-9A-Za-z_.])(?:\+?1[ .\-])?"
                r"(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .\-])[2-9][0-9]{2}[ .\-][0-9]{4}"
                + AFTER,
    "ipv4": BEFORE + r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}" + AFTER,
}.items()}
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
ID_CHECK = "10X98765432"
CARD_PREFIXES = re.compile(r"4|5[0-8]|2[2-7]|3[47]|3[05689]|62|6011|64|65|6[03789]")
NOT_PERSONAL_IPS = ("0.0.0.0", "127.0.0.1", "255.255.255.255")


@FILTERS.register("pii")
class PersonalData(Filter):
    """Writes `[EMAIL]`, `[CN_ID]` and so on over personal data. Numbers with a check digit must have the right one."""

    edits = True
    finds_secrets = True

    kinds: Annotated[tuple[Kind, ...], BeforeValidator(split_commas)] = Field(
        ("email", "cn_id", "bank_card", "cn_mobile", "cn_landline", "us_ssn", "us_phone", "ipv4"),
        description="What to look for, in this order.")
    replacement: str = Field("[{kind}]", description="Text written instead; {kind} is the kind in capitals.")
    action: Literal["mask", "drop"] = Field("mask", description="Write over what is found, or drop the row.")

    def judge(self, text: str) -> Verdict:
        if "@" not in text and not any(map(str.isdigit, text)):
            return KEEP
        found: Counter[str] = Counter()
        for kind in self.kinds:
            text, number = self._mask(text, kind)
            if number:
                found[kind] = number
        if not found:
            return KEEP
        detail = ", ".join(f"{kind} {number}" for kind, number in found.items())
        reason = next(iter(found)) if len(found) == 1 else "several kinds"
        return drop(reason, detail) if self.action == "drop" else change(text, reason, detail)

    def _mask(self, text: str, kind: str) -> tuple[str, int]:
        number, instead, is_real = 0, self.replacement.replace("{kind}", kind.upper()), CHECKS.get(kind)

        def write_over(match: re.Match[str]) -> str:
            nonlocal number
            if is_real is not None and not is_real(match[0]):
                return match[0]
            number += 1
            return instead

        return PATTERNS[kind].sub(write_over, text), number


def is_cn_id(number: str) -> bool:
    """Return whether an 18-digit resident number has a real date and the right check digit (GB 11643-1999)."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, ID_WEIGHTS, strict=False))
    return 1880 <= born.year <= 2100 and ID_CHECK[total % 11] == number[-1].upper()


def is_bank_card(number: str) -> bool:
    """Return whether the digits pass Luhn's check (ISO/IEC 7812) and begin as cards of known networks do."""
    digits = [int(sign) for sign in number if sign.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    is_card = CARD_PREFIXES.match("".join(map(str, digits))) is not None and len(set(digits)) > 1
    return is_card and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def is_us_ssn(number: str) -> bool:
    """Return whether area, group and serial are ones that are given out."""
    area, group, serial = number.split("-")
    return area not in ("000", "666") and group != "00" and serial != "0000"


def is_ipv4(address: str) -> bool:
    """Return whether it is an address of some machine: parts up to 255, neither loopback nor broadcast."""
    return all(int(part) < 256 for part in address.split(".")) and address not in NOT_PERSONAL_IPS


CHECKS: dict[str, Callable[[str], bool]] = {
    "cn_id": is_cn_id, "bank_card": is_bank_card, "us_ssn": is_us_ssn, "ipv4": is_ipv4}
