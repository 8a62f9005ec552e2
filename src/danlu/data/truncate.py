"""What happens to examples longer than `cutoff_len`: `on_long`. Each one is in the ledger.

    right   whole last rounds go; when the first round alone is too long, the tail of its answer goes, and with it the
            end-of-turn token, which is counted
    left    whole first rounds go, the system message stays; a last round that is too long is cut as with right
    split   rounds are spread over several examples, each with the system message
    drop    the example goes
    error   the run stops and names the row

A question or the header of an answer is never cut: an example whose prompt alone is too long is dropped. Rounds that
stay are encoded again, so that the template writes the rest as it would a shorter dialogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Message
from danlu.data.config import DataConfig
from danlu.data.ledger import Ledger
from danlu.templates import Encoded

Encode = Callable[[Sequence[Conversation]], list[Encoded]]
EOS_LOST = "answer cut at cutoff_len, its end-of-turn token is lost"
PROMPT_LONG = "the prompt alone exceeds cutoff_len"


def fit_conversations(pairs: Sequence[tuple[Conversation, Encoded]], encode: Encode, config: DataConfig,
                      ledger: Ledger) -> list[list[Encoded]]:
    """Return for each dialogue the examples of at most `cutoff_len` tokens that it becomes."""
    return [[one] if len(one.input_ids) <= config.cutoff_len else _shorten(talk, one, encode, config, ledger)
            for talk, one in pairs]


def fit_text(one: Encoded, config: DataConfig, ledger: Ledger) -> list[Encoded]:
    """Return the examples of at most `cutoff_len` tokens that a plain text becomes."""
    length, limit = len(one.input_ids), config.cutoff_len
    if length <= limit:
        return [one]
    detail = f"{length} tokens"
    if is_refused(one, config, ledger, detail):
        return []
    if config.on_long == "split":
        ledger.cut(one.origin, "split into several examples", detail)
        return [piece(one, start, min(start + limit, length)) for start in range(0, length, limit)]
    if config.on_long == "left":
        ledger.cut(one.origin, "start of the text cut at cutoff_len", detail)
        return [piece(one, length - limit, length)]
    ledger.cut(one.origin, "text cut at cutoff_len, its end-of-text token is lost", detail)
    return [piece(one, 0, limit)]


def piece(one: Encoded, start: int, end: int) -> Encoded:
    """Return tokens [start, end) of an example without turns."""
    weights = None if one.weights is None else one.weights[start:end]
    return Encoded(one.input_ids[start:end], one.trained[start:end], weights, ((0, 0, end - start),), one.origin)


def is_refused(one: Encoded, config: DataConfig, ledger: Ledger, detail: str) -> bool:
    """Return True for an example that `on_long` drops; raise where it says error."""
    if config.on_long == "error":
        raise DataError(f"{detail}, and cutoff_len is {config.cutoff_len}", where=str(one.origin),
                        fix="raise cutoff_len, or set on_long: right, left, split or drop")
    if config.on_long == "drop":
        ledger.drop(one.origin, "longer than cutoff_len", detail)
    return config.on_long == "drop"


def _shorten(talk: Conversation, one: Encoded, encode: Encode, config: DataConfig, ledger: Ledger) -> list[Encoded]:
    detail = f"{len(one.input_ids)} tokens"
    if is_refused(one, config, ledger, detail):
        return []
    system, rounds = split_rounds(talk.messages)
    if config.on_long == "split":
        groups = _groups(talk, system, rounds, encode, config.cutoff_len)
        if len(groups) > 1:
            ledger.cut(talk.origin, "split into several examples", detail)
    else:
        groups = [_longest_fit(talk, system, rounds, encode, config)]
        if lost := len(rounds) - groups[0][1]:
            side = "first" if config.on_long == "left" else "last"
            ledger.cut(talk.origin, f"whole {side} rounds left out to fit cutoff_len", f"{detail}, {lost} rounds")
    cut = (_cut_tail(one, config, ledger) for one, _ in groups)
    return [one for one in cut if one is not None]


def split_rounds(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Return the leading system message, if any, and the rounds: each begins with a user message."""
    system = tuple(messages[:1]) if messages[0].role == "system" else ()
    rounds: list[tuple[Message, ...]] = []
    for message in messages[len(system):]:
        if message.role == "user" or not rounds:
            rounds.append(())
        rounds[-1] += (message,)
    return system, rounds


def _encode_rounds(talk: Conversation, system: tuple[Message, ...], rounds: Sequence[tuple[Message, ...]],
                   encode: Encode) -> Encoded:
    messages = system + tuple(message for one in rounds for message in one)
    return encode([replace(talk, messages=messages)])[0]


def _longest_fit(talk: Conversation, system: tuple[Message, ...], rounds: Sequence[tuple[Message, ...]],
                 encode: Encode, config: DataConfig) -> tuple[Encoded, int]:
    """Return the encoding of as many rounds as fit, at least one, and their number (found by bisection)."""
    def of(count: int) -> Encoded:
        chosen = rounds[-count:] if config.on_long == "left" else rounds[:count]
        return _encode_rounds(talk, system, chosen, encode)

    best, fits, too_many = of(1), 1, len(rounds)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        tried = of(middle)
        if len(tried.input_ids) <= config.cutoff_len:
            best, fits = tried, middle
        else:
            too_many = middle
    return best, fits


def _groups(talk: Conversation, system: tuple[Message, ...], rounds: Sequence[tuple[Message, ...]], encode: Encode,
            limit: int) -> list[tuple[Encoded, int]]:
    """Return the examples that consecutive rounds fill, each with its number of rounds."""
    groups: list[tuple[Encoded, int]] = []
    first = 0
    while first < len(rounds):
        best, count = _encode_rounds(talk, system, rounds[first:first + 1], encode), 1
        while first + count < len(rounds):
            tried = _encode_rounds(talk, system, rounds[first:first + count + 1], encode)
            if len(tried.input_ids) > limit:
                break
            best, count = tried, count + 1
        groups.append((best, count))
        first += count
    return groups


def _cut_tail(one: Encoded, config: DataConfig, ledger: Ledger) -> Encoded | None:
    """Return the example cut behind the last trained token that fits; None, with an entry, when no answer fits."""
    limit, length = config.cutoff_len, len(one.input_ids)
    if length <= limit:
        return one
    detail = f"{length} tokens"
    answered = [turn for turn in one.turns if turn[1] + config.reserved_label_len <= limit]
    positions = np.flatnonzero(one.trained[:limit])
    if not answered or not len(positions):
        ledger.drop(one.origin, PROMPT_LONG if not answered else "no trained token before cutoff_len", detail)
        return None
    end = int(positions[-1]) + 1
    if one.trained[end:end + 1].any():
        ledger.cut(one.origin, EOS_LOST, detail)
    elif one.trained[end:].any():
        ledger.cut(one.origin, "answers behind cutoff_len left out", detail)
    weights = None if one.weights is None else one.weights[:end]
    turns = tuple((start, answer, min(stop, end)) for start, answer, stop in answered if answer < end)
    return Encoded(one.input_ids[:end], one.trained[:end], weights, turns, one.origin)
