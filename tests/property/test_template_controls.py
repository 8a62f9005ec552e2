"""Text that looks like a control token never becomes one, wherever it stands, and decodes back to itself."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.controls import control_pattern, mark
from tests.parity.template_tokenizers import sentencepiece_like
from tests.tiny import CHATML, tiny_tokenizer

CONTROLS = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<pad>"]
PIECES = st.sampled_from([*CONTROLS, "<|im_", "end|>", "<", "|", "assistant\n", "blue ", " 猫", "\n", "Human: "])
TEXTS = st.lists(PIECES, min_size=1, max_size=8).map("".join)
BYTE_LEVEL = tiny_tokenizer(chat_template=CHATML)
SENTENCEPIECE = sentencepiece_like("first")
SENTENCEPIECE.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
SENTENCEPIECE.chat_template = CHATML
TOKENIZERS = {"byte": BYTE_LEVEL, "sentencepiece": SENTENCEPIECE}


def dialogue(said: str, answered: str) -> Conversation:
    return Conversation((Message("user", said), Message("assistant", answered)), Origin("f", 1))


def num_controls(tokenizer, ids):
    return sum(int(i) in tokenizer.all_special_ids for i in ids)


@pytest.mark.parametrize("kind", ["byte", "sentencepiece"])
@pytest.mark.parametrize("name", ["chatml", "default", None])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=TEXTS, answered=TEXTS)
def test_no_control_token_comes_from_a_message(kind, name, said, answered):
    """A row holds exactly as many control tokens as one about plain words, and its text is the rendered text."""
    tokenizer = TOKENIZERS[kind]
    template = resolve(name, tokenizer)
    plain, tricky = template.encode_batch(
        [dialogue("blue", "blue"), dialogue(said, answered)], tokenizer, EncodeOptions())
    assert num_controls(tokenizer, tricky.input_ids) == num_controls(tokenizer, plain.input_ids)
    text = tokenizer.decode(plain.input_ids)
    assert tokenizer.decode(tricky.input_ids) == answered.join(said.join(text.split("blue", 1)).rsplit("blue", 1))
    prompt = template.encode_prompt((Message("user", said),), tokenizer)
    assert prompt == tricky.input_ids[:tricky.turns[0][1]].tolist()
    trained = tokenizer.decode(tricky.input_ids[tricky.trained]).lstrip(" ")  # a sentencepiece decoder strips one
    assert trained in ((answered + "<|im_end|>").lstrip(" "), (answered + "</s>").lstrip(" "))


def test_ordinary_text_is_not_cut():
    pattern = control_pattern(CONTROLS)
    text = "a < b | c, x_end|>"
    assert mark(text, pattern) is text
    assert mark("<|im_end|>", pattern).replace("\ufdd0", "") == "<|im_end|>"
    assert pattern.search(mark("<|im_<|im_end|>end|>", pattern)) is None


def test_added_words_that_are_no_control_tokens_stay_whole():
    """Runs of spaces and HTML tags in a vocabulary's added tokens are plain text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["    ", "<table>"])
    encoded = TEMPLATES["chatml"].encode_batch([dialogue("x", "a    <table>")], tokenizer, EncodeOptions())[0]
    assert set(tokenizer.convert_tokens_to_ids(["    ", "<table>"])) <= set(encoded.input_ids.tolist())


def test_thinking_tags_belong_to_the_assistant_only():
    """<think> of an answer is its markup; the same text from a user is text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    answer = "<think>\nwhy\n</think>\n\nblue"
    for name in ("chatml", "qwen3"):
        encoded = TEMPLATES[name].encode_batch(
            [dialogue("<think>no</think>", answer)], tokenizer, EncodeOptions())[0]
        (_, start, _), = encoded.turns
        assert not set(tags) & set(encoded.input_ids[:start].tolist())
        assert [i for i in encoded.input_ids[start:].tolist() if i in tags] == tags
