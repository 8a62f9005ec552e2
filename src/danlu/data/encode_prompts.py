"""Prompts as tokens: a dialogue that ends before an answer, with the words that a reward reads beside it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Message, Prompt
from danlu.data.encode import EncodeContext
from danlu.data.truncate import PROMPT_LONG, is_refused, split_rounds
from danlu.templates import Encoded


def encode_prompts(records: Sequence[Prompt], context: EncodeContext) -> list[Encoded]:
    """Encode prompts of at most `cutoff_len` tokens, the generation prompt at their end; no token carries loss.

    The oldest whole rounds of a longer one are left out, or `on_long` drops or refuses it. `note` holds messages, extra
    columns and origin as JSON.
    Errors: DataError with the row's origin for a dialogue that the template cannot express.
    """
    if context.template is None:
        raise ConfigError("dialogue needs a chat template", where="template", fix="set template: default")
    try:
        rows = _ids(records, context)
    except DataError:
        if context.config.on_bad_row == "error":
            raise
        return [one for record in records for one in _encode_or_drop(record, context)]
    return [one for record, ids in zip(records, rows, strict=True) for one in _fit(record, ids, context)]


def note_of(messages: Sequence[Message], extra: dict[str, Any], origin: str) -> str:
    """Return what a reward needs to know of a prompt, as JSON."""
    turns = [{name: value for name, value in asdict(message).items() if value or name == "content"}
             for message in messages]
    return json.dumps({"messages": turns, "extra": extra, "origin": origin}, ensure_ascii=False, default=str)


def read_note(note: str) -> tuple[tuple[Message, ...], dict[str, Any], str]:
    """Return messages, extra columns and origin of a note."""
    known = json.loads(note)
    messages = tuple(Message(**{**one, "tool_calls": tuple(one.get("tool_calls", ()))}) for one in known["messages"])
    return messages, known["extra"], known["origin"]


def _ids(records: Sequence[Prompt], context: EncodeContext) -> list[list[int]]:
    assert context.template is not None
    talks = [Conversation(record.messages, record.origin, record.tools) for record in records]
    return context.template.encode_prompts(talks, context.tokenizer, context.options) if talks else []


def _encode_or_drop(record: Prompt, context: EncodeContext) -> list[Encoded]:
    try:
        ids = _ids([record], context)[0]
    except DataError as error:
        context.ledger.drop(record.origin, "the template cannot express it", error.what)
        return []
    return _fit(record, ids, context)


def _fit(record: Prompt, ids: list[int], context: EncodeContext) -> list[Encoded]:
    limit, system, rounds = context.config.cutoff_len, *split_rounds(record.messages)
    told, kept = f"{len(ids)} tokens", len(rounds)
    if len(ids) > limit and is_refused(_encoded(record, ids), context.config, context.ledger, told):
        return []
    while len(ids) > limit and kept > 1:
        kept -= 1
        messages = system + tuple(message for one in rounds[-kept:] for message in one)
        record = replace(record, messages=messages)
        ids = _ids([record], context)[0]
    if len(ids) > limit:
        context.ledger.drop(record.origin, PROMPT_LONG, told)
        return []
    if kept < len(rounds):
        context.ledger.cut(record.origin, "whole first rounds left out to fit cutoff_len",
                           f"{told}, {len(rounds) - kept} rounds")
    return [_encoded(record, ids)]


def _encoded(record: Prompt, ids: list[int]) -> Encoded:
    row = np.array(ids, np.int32)
    note = note_of(record.messages, record.extra, str(record.origin))
    return Encoded(row, np.zeros(len(row), np.bool_), None, ((0, len(row), len(row)),), record.origin, note=note)
