"""Rendered text to token ids: cut at every answer, one batch through the tokenizer, offsets back to tokens.

Each answer starts a piece of its own, so the ids of a generation prompt are a prefix of the ids that were trained on,
even where the last character of the prompt and the first of the answer would merge ("Assistant: " and "Paris").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from danlu.templates.rendered import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts to put in front of a piece so that it is not tokenised as the beginning of a string (where sentencepiece
# writes a space), tried in turn until one does not merge with the piece.
_ANCHORS = ("\n", "a", ".", "0", "。", " a", "<", "|")


class Pieces(Protocol):
    """The tokens of one string."""

    ids: list[int]

    def char_to_token(self, char_pos: int) -> int | None: ...


@dataclass(slots=True)
class _SlowPieces:
    """The same for tokenizers without offsets: a prefix is encoded again to count its tokens."""

    tokenizer: "PreTrainedTokenizerBase"
    text: str
    ids: list[int]

    def char_to_token(self, char_pos: int) -> int | None:
        """Return how many tokens the text before `char_pos` has."""
        return len(self.tokenizer(self.text[:char_pos], add_special_tokens=False)["input_ids"])


def encode_strings(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> Sequence[Pieces]:
    """Tokenise many strings at once, adding nothing to them."""
    if not tokenizer.is_fast:
        return [_SlowPieces(tokenizer, t, list(tokenizer(t, add_special_tokens=False)["input_ids"])) for t in texts]
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoded: list[Pieces] = backend.encode_batch(list(texts), add_special_tokens=False)
    return encoded


def encode_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of many strings, nothing added; no offsets are asked for, which takes a fifth less time."""
    if not tokenizer.is_fast:
        return [list(one.ids) for one in encode_strings(tokenizer, texts)]
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


@dataclass(slots=True)
class _Piece:
    """Characters [begin, end) of one row, encoded behind an anchor that is taken off again."""

    begin: int
    end: int
    anchor: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one rendered dialogue; each turn as token offsets (start, answer_start, stop, end)."""

    ids: list[int]
    turns: tuple[tuple[int, int, int, int], ...]


def tokenize(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Rendered]) -> list[Tokens]:
    """Tokenise rendered dialogues in one batch."""
    plans = [_plan(row) for row in rows]
    texts = [p.anchor + row.text[p.begin:p.end] for row, plan in zip(rows, plans, strict=True) for p in plan]
    anchors = sorted({p.anchor for plan in plans for p in plan if p.anchor} | {*_ANCHORS})
    encoded = encode_strings(tokenizer, [*anchors, *texts])
    known = {anchor: list(e.ids) for anchor, e in zip(anchors, encoded, strict=False)}
    queue = iter(encoded[len(anchors):])
    return [_assemble(tokenizer, row, plan, [next(queue) for _ in plan], known)
            for row, plan in zip(rows, plans, strict=True)]


def _plan(row: Rendered) -> list[_Piece]:
    anchors = {turn.answer_start: turn.anchor.rstrip(" ") for turn in row.turns}
    begins = sorted({0, *anchors, *row.cuts} - {len(row.text)} | {0})
    ends = [*begins[1:], len(row.text)]
    return [_Piece(b, e, (anchors.get(b) or _ANCHORS[0]) if b else "") for b, e in zip(begins, ends, strict=True)]


def _assemble(
    tokenizer: "PreTrainedTokenizerBase", row: Rendered, plan: list[_Piece], encoded: list[Pieces],
    anchor_ids: dict[str, list[int]],
) -> Tokens:
    ids: list[int] = []
    places = sorted({o for t in row.turns for o in (t.start, t.answer_start, t.stop, t.end)})
    tokens_at = {len(row.text): -1}
    for piece, tokens in zip(plan, encoded, strict=True):
        skip = len(anchor_ids[piece.anchor]) if piece.anchor else 0
        piece_ids = list(tokens.ids)
        if piece.anchor and piece_ids[:skip] != anchor_ids[piece.anchor]:
            piece, tokens = _another_anchor(tokenizer, row.text, piece, anchor_ids)
            skip = len(anchor_ids[piece.anchor]) if piece.anchor else 0
            piece_ids = list(tokens.ids)
        for place in places:
            if piece.begin <= place < piece.end:
                at = _token_at(tokens, place - piece.begin + len(piece.anchor), piece.end - piece.begin, piece.anchor)
                tokens_at[place] = len(ids) + max(at - skip, 0)
        ids.extend(piece_ids[skip:])
    tokens_at[len(row.text)] = len(ids)
    turns = tuple(
        (tokens_at[t.start], tokens_at[t.answer_start], tokens_at[t.stop], tokens_at[t.end]) for t in row.turns)
    return Tokens(ids, turns)


def _token_at(tokens: Pieces, char: int, length: int, anchor: str) -> int:
    """Return the index of the first token that begins at or behind `char`; a token across it counts as before it."""
    if char == len(anchor):
        return 0
    last = length + len(anchor)
    for position in range(char, last):
        index = tokens.char_to_token(position)
        if index is None:
            continue
        return index + 1 if tokens.char_to_token(char - 1) == index and _spans(tokens, index, char) else index
    return len(tokens.ids)


def _spans(tokens: Pieces, index: int, char: int) -> bool:
    """Return True when token `index` begins before `char` (unknown for tokenizers without offsets: no)."""
    offsets = getattr(tokens, "offsets", None)
    return offsets is not None and bool(offsets[index][0] < char)


def _another_anchor(
    tokenizer: "PreTrainedTokenizerBase", text: str, piece: _Piece, anchor_ids: dict[str, list[int]],
) -> tuple[_Piece, Pieces]:
    """Encode a piece behind the first anchor that does not merge with it."""
    for anchor in _ANCHORS:
        tokens = encode_strings(tokenizer, [anchor + text[piece.begin:piece.end]])[0]
        if anchor_ids[anchor] and tokens.ids[:len(anchor_ids[anchor])] == anchor_ids[anchor]:
            return _Piece(piece.begin, piece.end, anchor), tokens
    bare = encode_strings(tokenizer, [text[piece.begin:piece.end]])[0]
    return _Piece(piece.begin, piece.end, ""), bare


