"""Texts as sets of hashed n-grams, many texts at a time in numpy.

A token is a word, or one sign where the script has no blanks between words (Chinese, Japanese); so the right unit is
chosen sign by sign, and a text in both scripts needs no decision. Case, width, marks and blanks make no difference.
Suffixes: _C characters of all texts, _T tokens of all texts, _G n-grams of all texts.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["auto", "char", "word"]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

BETWEEN, IN_WORD, ALONE, MARK = 0, 1, 2, 3
PLANES = 0x20000
ALONE_RANGES = ((0x3041, 0x3097), (0x30A1, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
SIGN_FACTOR, TOKEN_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


@cache
def _classes() -> NDArray[np.uint8]:
    """Return what each code point is: between words, inside a word, a word alone, or a mark; beyond: alone."""
    table = np.zeros(PLANES + 1, np.uint8)
    for code in range(PLANES):
        kind = unicodedata.category(chr(code))[0]
        table[code] = IN_WORD if kind in "LNM" else BETWEEN if kind in "ZC" else MARK
    for first, end in ALONE_RANGES:
        table[first:end] = ALONE
    table[PLANES] = ALONE
    return table


def normalise(text: str) -> str:
    """Return the text as it is compared: NFKC, lower case, single blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split())


def mixed(values: Hashes) -> Hashes:
    """Return well-spread 64-bit values, one for each value (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Hashed tokens of some texts: hash_T, text_T (index of the text, ascending), start_T (character in the text)."""

    num_texts: int
    hash_T: Hashes
    text_T: Places
    start_T: Places

    @property
    def counts(self) -> Places:
        """The number of tokens of each text."""
        return np.bincount(self.text_T, minlength=self.num_texts)


def tokenise(texts: Sequence[str], unit: Unit = "auto") -> Tokens:
    """Return the tokens of normalised texts."""
    codes_C = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds_C = _classes()[np.minimum(codes_C, PLANES)]
    if unit == "char":
        kinds_C = np.where(kinds_C == BETWEEN, BETWEEN, ALONE).astype(np.uint8)
    elif unit == "word":
        kinds_C = np.where(kinds_C == ALONE, IN_WORD, kinds_C)
    is_inside_C = kinds_C == IN_WORD
    begins_C = is_inside_C.copy()
    begins_C[1:] &= ~is_inside_C[:-1]
    begins_C |= kinds_C == ALONE
    starts_T = np.flatnonzero(begins_C)
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    first_char = np.cumsum(lengths) - lengths
    text_T = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(starts_T, np.append(first_char, len(codes_C)))))
    counted_C = begins_C | is_inside_C
    return Tokens(len(texts), _token_hashes(codes_C, counted_C, starts_T), text_T, starts_T - first_char[text_T])


def _token_hashes(codes_C: NDArray[np.uint32], counted_C: NDArray[np.bool_], starts_T: Places) -> Hashes:
    """Return, for each token, mixed(sum over its characters of mixed(code) * SIGN_FACTOR ** place)."""
    if not len(starts_T):
        return np.zeros(0, np.uint64)
    lengths = np.diff(np.append(starts_T, len(codes_C)))
    place_C = np.arange(starts_T[0], len(codes_C)) - np.repeat(starts_T, lengths)
    powers = _powers(SIGN_FACTOR, int(place_C.max()) + 1)
    values_C = mixed(codes_C[starts_T[0]:].astype(np.uint64) + np.uint64(1)) * powers[place_C]
    values_C[~counted_C[starts_T[0]:]] = 0
    return mixed(np.add.reduceat(values_C, starts_T - starts_T[0]))


def _powers(factor: np.uint64, number: int) -> Hashes:
    powers = np.full(number, factor, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def ngrams(tokens: Tokens, n: int, *, whole_if_short: bool) -> tuple[Hashes, Places]:
    """Return hash_G and first_G, the place in hash_T of each n-gram's first token.

    A text of fewer than n tokens is one gram when `whole_if_short`, else none.
    """
    number = len(tokens.hash_T)
    if not number:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    padded = np.concatenate([tokens.hash_T, np.zeros(n, np.uint64)])
    texts = np.concatenate([tokens.text_T, np.full(n, -1, np.int64)])
    sums = np.zeros(number, np.uint64)
    for place, power in enumerate(_powers(TOKEN_FACTOR, n)):
        is_same = texts[place:place + number] == tokens.text_T
        sums += np.where(is_same, padded[place:place + number], np.uint64(0)) * power
    is_gram = texts[n - 1:n - 1 + number] == tokens.text_T
    if whole_if_short:
        counts = tokens.counts
        first = np.cumsum(counts) - counts
        is_gram[first[(counts > 0) & (counts < n)]] = True
    first_G = np.flatnonzero(is_gram)
    return mixed(sums[first_G]), first_G


def shingle_sets(texts: Sequence[str], n: int, unit: Unit = "auto") -> tuple[NDArray[np.uint32], Places]:
    """Return the n-grams of each text, hashed to 32 bits, sorted, each once; and their number for each text."""
    tokens = tokenise(texts, unit)
    hash_G, first_G = ngrams(tokens, n, whole_if_short=True)
    keys = (tokens.text_T[first_G].astype(np.uint64) << np.uint64(32)) | (hash_G >> np.uint64(32))
    keys.sort()
    is_first: NDArray[Any] = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    keys = keys[is_first]
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return keys.astype(np.uint32), counts
