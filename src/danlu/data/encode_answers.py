"""Answers to be judged as tokens: each of a record's answers behind its whole prompt, one segment an answer.

An encoded record lays its segments end to end; `turns` holds (start, answer_start, end) of each. Only the answer
carries loss. `cutoff_len` bounds each segment: first the oldest whole rounds of the prompt go, alike for all answers,
then the tails of the answers that are still too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Feedback, Graded, Message, Preference
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext
from danlu.data.packing import Arranged
from danlu.data.truncate import EOS_LOST, PROMPT_LONG, is_refused, split_rounds
from danlu.templates import Encoded

EQUAL = "answers are alike once cut at cutoff_len"
MOST_STEPS = 64  # how far a mismatched answer is looked for before one to the same prompt is taken


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt with its answers as dialogues, and what is known of them."""

    talks: tuple[Conversation, ...]
    facts: tuple[float, ...] = ()


def encode_preferences(records: Sequence[Preference], context: EncodeContext) -> list[Encoded]:
    """Encode each prompt with its answers, best first; at most `cutoff_len` tokens an answer.

    Errors: DataError with the row's origin for a dialogue that the template cannot express.
    """
    return _encode([Answered(_talks(one)) for one in records], context)


def encode_judged(records: Sequence[Preference | Graded], context: EncodeContext) -> list[Encoded]:
    """Encode each prompt with its answers, best first; facts: margin of the preference, number of good answers.

    Margins that the data give are counted in the ledger. Errors as of `encode_preferences`.
    """
    groups = []
    for one in records:
        margin = None if isinstance(one, Graded) else one.margin
        if margin is not None:
            context.ledger.count(one.origin.source, "with a margin")
        groups.append(Answered(_talks(one), (margin or 0.0, float(one.num_good if isinstance(one, Graded) else 1))))
    return _encode(groups, context)


def encode_feedback(records: Sequence[Feedback], context: EncodeContext) -> list[Encoded]:
    """Encode each dialogue with loss on its last answer; its only fact is 1 for a desirable answer, else 0."""
    return _encode([Answered((Conversation(_unweighted(one.messages), one.origin),), (float(one.desirable),))
                    for one in records], context)


def keep_answers_together(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
    """Return one example a record: all its answers, best first, as segments."""
    return Arranged(encoded, [[(which, start, end) for start, _, end in one.turns]
                              for which, one in enumerate(encoded)], is_one_stream=False)


def pair_with_best(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
    """Return examples of two segments, chosen and rejected: the best answer with each of the others."""
    plan = [[(which, *_bounds(one.turns[0])), (which, *_bounds(turn))]
            for which, one in enumerate(encoded) for turn in one.turns[1:]]
    return Arranged(encoded, plan, is_one_stream=False)


class WithMismatched(Sequence[Example]):
    """Each dialogue, and as a second segment its prompt with the answer to another prompt of the data set.

    The partner is the next record whose prompt differs, so that it depends on the data alone, not on how a batch is
    dealt to processes.
    """

    def __init__(self, encoded: Sequence[Encoded], cutoff_len: int) -> None:
        self._encoded, self._cutoff_len = encoded, cutoff_len

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if index >= len(self):
            raise IndexError(index)
        own = self._encoded[index]
        prompt, answer = _prompt(own), _answer(self._partner(index))[:max(1, self._cutoff_len - own.turns[0][1])]
        trained = np.zeros(len(prompt) + len(answer), np.bool_)
        trained[len(prompt):] = True
        return Example(np.concatenate([own.input_ids, prompt, answer]).astype(np.int64),
                       np.concatenate([own.trained, trained]), None, (len(own.input_ids), len(trained)), index,
                       own.facts)

    def _partner(self, index: int) -> Encoded:
        own = _prompt(self._encoded[index])
        size = len(self)
        for step in range(1, min(MOST_STEPS, size)):
            other = self._encoded[(index + step) % size]
            if not np.array_equal(_prompt(other), own):
                return other
        return self._encoded[(index + 1) % size]


def with_mismatched(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
    """Return one example a record, with the mismatched dialogue that a KL baseline is measured on."""
    return WithMismatched(encoded, config.cutoff_len)


def _talks(one: Preference | Graded) -> tuple[Conversation, ...]:
    """Return the prompt with each answer as a dialogue of its own."""
    return tuple(Conversation((*_unweighted(one.prompt), *_unweighted([answer])), one.origin, one.tools)
                 for answer in one.answers)


def _bounds(turn: tuple[int, int, int]) -> tuple[int, int]:
    return turn[0], turn[2]


def _prompt(one: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return one.input_ids[:one.turns[0][1]]


def _answer(one: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    _, start, end = one.turns[0]
    return one.input_ids[start:end]


def _unweighted(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, weight=None) for message in messages)


def _encode(groups: Sequence[Answered], context: EncodeContext) -> list[Encoded]:
    if context.template is None:
        raise ConfigError("dialogue needs a chat template", where="template", fix="set template: default")
    try:
        segments = _segments([talk for group in groups for talk in group.talks], context)
    except DataError:
        if context.config.on_bad_row == "error":
            raise
        return [one for group in groups for one in _encode_or_drop(group, context)]
    rows, found = iter(segments), []
    for group in groups:
        found += _fit(group, [next(rows) for _ in group.talks], context)
    return found


def _encode_or_drop(group: Answered, context: EncodeContext) -> list[Encoded]:
    try:
        segments = _segments(group.talks, context)
    except DataError as error:
        context.ledger.drop(group.talks[0].origin, "the template cannot express it", error.what)
        return []
    return _fit(group, segments, context)


def _segments(talks: Sequence[Conversation], context: EncodeContext) -> list[Encoded]:
    """Encode dialogues; only the last answer of each is trained."""
    assert context.template is not None
    options = replace(context.options, mask_history=True, train_on_prompt=False)
    return context.template.encode_batch(talks, context.tokenizer, options) if talks else []


def _fit(group: Answered, segments: list[Encoded], context: EncodeContext) -> list[Encoded]:
    """Return the record as one Encoded, in a list; an empty list, with an entry in the ledger, when it cannot be."""
    limit, ledger, first = context.config.cutoff_len, context.ledger, segments[0]
    if max(len(one.input_ids) for one in segments) > limit:
        detail = f"{max(len(one.input_ids) for one in segments)} tokens"
        if is_refused(first, context.config, ledger, detail):
            return []
        segments = _leave_out_rounds(group, segments, context)
        start = max(one.turns[-1][1] for one in segments)
        if start + context.config.reserved_label_len > limit:
            ledger.drop(first.origin, PROMPT_LONG, detail)
            return []
        if max(len(one.input_ids) for one in segments) > limit:
            ledger.cut(first.origin, EOS_LOST, detail)
    pieces = [_cut(one, limit) for one in segments]
    if not all(trained[1:].any() for _, trained, _ in pieces):
        ledger.drop(first.origin, "no trained token")
        return []
    if len({ids.tobytes() for ids, _, _ in pieces}) < len(pieces):
        ledger.drop(first.origin, EQUAL)
        return []
    return [_joined(pieces, first, group.facts)]


def _leave_out_rounds(group: Answered, segments: list[Encoded], context: EncodeContext) -> list[Encoded]:
    """Leave out as few of the oldest rounds as let every answer fit; all but the last when none does."""
    system, rounds = split_rounds(group.talks[0].messages[:-1])
    for kept in range(len(rounds) - 1, 0, -1):
        prompt = system + tuple(message for one in rounds[-kept:] for message in one)
        shorter = _segments([replace(talk, messages=(*prompt, talk.messages[-1])) for talk in group.talks], context)
        fits = max(len(one.input_ids) for one in shorter) <= context.config.cutoff_len
        if fits or kept == 1:
            context.ledger.cut(segments[0].origin, "whole first rounds left out to fit cutoff_len",
                               f"{len(rounds) - kept} rounds")
            return shorter
    return segments


Piece = tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], np.ndarray[tuple[int, ...], np.dtype[np.bool_]], int]


def _cut(one: Encoded, limit: int) -> Piece:
    """Return ids and mask up to the last trained token within the limit, and where the answer starts."""
    positions = np.flatnonzero(one.trained[:limit])
    end = int(positions[-1]) + 1 if len(positions) else min(limit, len(one.input_ids))
    return one.input_ids[:end], one.trained[:end], one.turns[-1][1]


def _joined(pieces: Sequence[Piece], first: Encoded, facts: tuple[float, ...]) -> Encoded:
    turns, start = [], 0
    for ids, _, answer in pieces:
        turns.append((start, start + answer, start + len(ids)))
        start += len(ids)
    return Encoded(np.concatenate([ids for ids, _, _ in pieces]), np.concatenate([mask for _, mask, _ in pieces]),
                   None, tuple(turns), first.origin, facts)
