"""Streaming text: any ids, any tokenizer, the pieces join to the whole and no piece holds half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from danlu.generation.detokenize import UNFINISHED, TextStream, decode
from tests.tiny import tiny_tokenizer

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("天空是蓝色的🌞 abc\n", max_size=20)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Pieces with a leading-space mark, a byte fallback for the rest, and a decoder that strips the first space."""
    pieces = ["<unk>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *"▁abc", "▁the", "▁cat", "天", "空"]
    raw = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


def pieces_of(tokenizer: PreTrainedTokenizerFast, ids: list[int], skip: bool) -> list[str]:
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    return [piece for piece in [*(stream.push(i) for i in ids), stream.flush()] if piece]


@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_text_comes_back_character_by_character(text: str) -> None:
    tokenizer = tiny_tokenizer()
    pieces = pieces_of(tokenizer, tokenizer.encode(text, add_special_tokens=False), True)
    assert "".join(pieces) == text
    assert UNFINISHED in text or not any(UNFINISHED in piece for piece in pieces)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 300), max_size=30), skip=st.booleans())
def test_any_bytes_join_to_the_whole(ids: list[int], skip: bool) -> None:
    tokenizer = tiny_tokenizer()
    assert "".join(pieces_of(tokenizer, ids, skip)) == decode(tokenizer, ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=150)
@given(parts=st.lists(st.sampled_from(["</s>", "▁the", "▁", "▁cat", "a", "天", "蓝", "🌞", "\n"]), max_size=20),
       skip=st.booleans())
def test_sentencepiece_spaces_join_to_the_whole(parts: list[str], skip: bool) -> None:
    """Characters outside the vocabulary are spelled byte by byte; the first space of an answer is stripped once."""
    tokenizer = sentencepiece_like()
    known = tokenizer.get_vocab()
    ids = [i for part in parts for i in ([known[part]] if part in known else [2 + b for b in part.encode()])]
    assert "".join(pieces_of(tokenizer, ids, skip)) == decode(tokenizer, ids, skip_special_tokens=skip)


def test_a_chinese_character_of_three_bytes_comes_in_one_piece() -> None:
    """"天" is E5 A4 A9: two empty pushes, then the character."""
    tokenizer = sentencepiece_like()
    stream = TextStream(tokenizer, skip_special_tokens=True)
    assert [stream.push(2 + byte) for byte in "天".encode()] == ["", "", "天"]
