"""From records to tokens: dialogue through the chat template, prose through the tokenizer. No record is lost unseen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from danlu.core.console import notice
from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Text
from danlu.data.config import DataConfig
from danlu.data.ledger import Ledger
from danlu.data.truncate import fit_conversations, fit_text
from danlu.templates import ChatTemplate, Encoded, EncodeOptions
from danlu.templates.tokenize import encode_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodeContext", "Encoded", "encode_conversations", "encode_texts"]


@dataclass(frozen=True, slots=True)
class EncodeContext:
    """What encoding needs: tokenizer, template (None where only prose is read), keys; and the ledger it writes."""

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None
    config: DataConfig
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def options(self) -> EncodeOptions:
        """How dialogue is masked and rendered."""
        keys = self.config
        return EncodeOptions(
            train_on_prompt=keys.train_on_prompt, mask_history=keys.mask_history, default_system=keys.default_system,
            enable_thinking=keys.enable_thinking, preserve_thinking=keys.preserve_thinking)


def encode_conversations(records: Sequence[Conversation | Text], context: EncodeContext) -> list[Encoded]:
    """Encode dialogue with loss on the answers, prose with loss on all of it; at most `cutoff_len` tokens each.

    Errors: DataError with the row's origin for a dialogue that the template cannot express.
    """
    talks = [record for record in records if isinstance(record, Conversation)]
    encoded = dict(zip(map(id, talks), _encode_talks(talks, context), strict=True))
    prose = [record for record in records if not isinstance(record, Conversation)]
    encoded.update(zip(map(id, prose), _encode_prose(prose, context), strict=True))
    return [one for record in records for one in encoded[id(record)] if _teaches(one, context.ledger)]


def encode_texts(records: Sequence[Text], context: EncodeContext) -> list[Encoded]:
    """Encode documents whole, each with the tokenizer's own start and an end-of-text token; all of it is trained."""
    return documents(records, context.tokenizer)


def documents(records: Sequence[Text], tokenizer: "PreTrainedTokenizerBase") -> list[Encoded]:
    """Return each text as one segment: [start] text end-of-text."""
    if not records:
        return []
    start, end = text_frame(tokenizer)
    rows = encode_ids(tokenizer, [record.text for record in records])
    encoded = []
    for record, ids in zip(records, rows, strict=True):
        closing = end if ids[-len(end):] != end else []
        row = np.array(start + ids + closing, np.int32)
        encoded.append(Encoded(row, np.ones(len(row), np.bool_), None, ((0, 0, len(row)),), record.origin))
    return encoded


def text_frame(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before a text, and the end-of-text ids behind it."""
    added = list(tokenizer("")["input_ids"])
    start = [token for token in added if token != tokenizer.eos_token_id]
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id == tokenizer.eos_token_id and added:
        start = [tokenizer.bos_token_id]
    if tokenizer.eos_token_id is None:
        notice("the tokenizer has no end-of-text token: documents and plain text rows end without one")
        return start, []
    return start, [int(tokenizer.eos_token_id)]


def _encode_talks(talks: Sequence[Conversation], context: EncodeContext) -> list[list[Encoded]]:
    if not talks:
        return []
    if context.template is None:
        raise ConfigError("dialogue needs a chat template", where="template", fix="set template: default")
    template, options = context.template, context.options

    def encode(rows: Sequence[Conversation]) -> list[Encoded]:
        return template.encode_batch(rows, context.tokenizer, options)

    expressed = _expressible(talks, encode, context)
    pairs = [(talk, one) for talk, one in zip(talks, expressed, strict=True) if one is not None]
    fitted = iter(fit_conversations(pairs, encode, context.config, context.ledger))
    return [[] if one is None else next(fitted) for one in expressed]


def _expressible(talks: Sequence[Conversation], encode: Callable[[Sequence[Conversation]], list[Encoded]],
                 context: EncodeContext) -> Sequence[Encoded | None]:
    """Encode all; where rows may be skipped, None stands for those that the template refuses."""
    try:
        return encode(talks)
    except DataError:
        if context.config.on_bad_row == "error":
            raise
    found: list[Encoded | None] = []
    for talk in talks:
        try:
            found += encode([talk])
        except DataError as error:
            context.ledger.drop(talk.origin, "the template cannot express it", error.what)
            found.append(None)
    return found


def _encode_prose(prose: Sequence[Text], context: EncodeContext) -> list[list[Encoded]]:
    return [fit_text(one, context.config, context.ledger) for one in documents(prose, context.tokenizer)]


def _teaches(one: Encoded, ledger: Ledger) -> bool:
    """Say whether any token carries loss: the first token of a row never does, for nothing predicts it."""
    if one.trained[1:].any() and (one.weights is None or one.weights[1:][one.trained[1:]].any()):
        return True
    ledger.drop(one.origin, "no trained token")
    return False
