"""Build a tokenizer from a bare sentencepiece file, for old checkpoints whose tokenizer came as Python code.

The file's own settings decide (dummy prefix, white space, character map), not the class of another model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
# Fields of sentencepiece's ModelProto: 1 is a piece, with its text in 1 and its kind in 3 (4: user defined, taken whole
# wherever it stands); 3 is the NormalizerSpec, with the character map in 2 and two switches in 3 and 4.
PIECE, TEXT, KIND, USER_DEFINED = 1, 1, 3, 4
NORMALIZER, CHARACTER_MAP, DUMMY_PREFIX, STRIP_SPACES = 3, 2, 3, 4


def from_sentencepiece(
    file: Path, *, control_tokens: Sequence[str] = (), prefix: Sequence[str] = (), pad: str | None = None,
) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer that splits text as the sentencepiece BPE model in `file` does.

    control_tokens  tokens that get the ids behind the last piece, in this order
    prefix          of them, those that begin every plain text
    """
    source = SentencePieceProcessor(model_file=str(file))
    pieces = [source.id_to_piece(i) for i in range(source.vocab_size())]
    scores = {piece: source.get_score(i) for i, piece in enumerate(pieces)}
    vocab = {piece: i for i, piece in enumerate(pieces)}
    message = list(_fields(source.serialized_model_proto()))
    spec = dict(_fields(_bytes(dict(message).get(NORMALIZER, b""))))
    unknown = pieces[source.unk_id()]
    raw = Tokenizer(models.BPE(
        vocab, _merges(vocab, scores), unk_token=unknown, fuse_unk=True,
        byte_fallback=any(source.is_byte(i) for i in range(len(pieces)))))
    adds_prefix = bool(spec.get(DUMMY_PREFIX, 1))
    raw.normalizer = normalizers.Sequence(list(_normalizers(spec, adds_prefix)))
    ending = [decoders.Strip(content=" ", left=1)] if adds_prefix else []
    raw.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ending])
    raw.add_tokens([AddedToken(text, normalized=False) for text in _user_defined(message)])
    raw.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in range(len(pieces))
                            if source.is_control(i) or source.is_unknown(i)])
    raw.add_special_tokens([
        AddedToken(token, special=True, normalized=False, single_word=token.isalpha()) for token in control_tokens])
    if prefix:
        raw.post_processor = processors.TemplateProcessing(
            single=" ".join([*prefix, "$A"]), special_tokens=[(token, raw.token_to_id(token)) for token in prefix])
    names = {key: pieces[index] for key, index in (("bos_token", source.bos_id()), ("eos_token", source.eos_id()))
             if index >= 0}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=unknown, **names, **({} if pad is None else {"pad_token": pad}),
        clean_up_tokenization_spaces=False)


def _normalizers(spec: dict[int, int | bytes], adds_prefix: bool) -> Iterator[normalizers.Normalizer]:
    character_map = spec.get(CHARACTER_MAP)
    if isinstance(character_map, bytes) and character_map:
        yield normalizers.Precompiled(character_map)
    if spec.get(STRIP_SPACES, 1):
        yield normalizers.Strip()
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if adds_prefix:
        # In front of each stretch between control tokens, as the old code encoded these stretches one by one.
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _user_defined(message: list[tuple[int, int | bytes]]) -> list[str]:
    pieces = [dict(_fields(_bytes(value))) for number, value in message if number == PIECE]
    return [_bytes(piece[TEXT]).decode() for piece in pieces if piece.get(KIND) == USER_DEFINED]


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that joins to a piece, best score first, as sentencepiece would join them."""
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protobuf message; the fields read here are switches and byte strings."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at:at + length]
            at += length
        else:
            at += 4 if kind == 5 else 8


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
