"""on_long: what is cut, what is kept, and that the ledger says so. Tokens are bytes, so lengths are counted by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Message, Origin, Text
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext, encode_conversations, encode_texts
from danlu.templates import resolve

JINJA = ("{% for m in messages %}{{ {'system': 'S', 'user': 'U', 'assistant': 'A'}[m['role']] }}{{ m['content'] }}"
         "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}")


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character of ASCII, and </s> as the end of a turn and of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate(["</s>", *letters])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", chat_template=JINJA)


def talk(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    messages = [Message(role, text) for role, text in zip(roles, texts, strict=False)]
    return Conversation((*([Message("system", system)] if system else []), *messages), Origin("f", 1))


def run(tokenizer, record, **keys):
    """Return [(text, trained text)] of each example, and the ledger's reasons."""
    context = EncodeContext(tokenizer, resolve(None, tokenizer), DataConfig(**keys))
    found = encode_conversations([record], context)
    assert all(len(one.input_ids) <= context.config.cutoff_len for one in found)
    return ([(tokenizer.decode(one.input_ids), tokenizer.decode(one.input_ids[one.trained])) for one in found],
            dict(context.ledger.reasons()))


TALK = talk("aa", "bb", "cc", "dd", system="s")  # SsUaaAbb</s>UccAdd</s>: 2 + 7 + 7 = 16 tokens


def test_what_fits_is_left_alone(tokenizer):
    assert run(tokenizer, TALK, cutoff_len=16) == ([("SsUaaAbb</s>UccAdd</s>", "bb</s>dd</s>")], {})


@pytest.mark.parametrize("limit", [9, 15])
def test_right_leaves_whole_last_rounds_out(tokenizer, limit):
    assert run(tokenizer, TALK, cutoff_len=limit) == (
        [("SsUaaAbb</s>", "bb</s>")], {"cut: whole last rounds left out to fit cutoff_len": 1})


def test_right_cuts_the_answers_tail_and_counts_the_lost_end(tokenizer):
    assert run(tokenizer, talk("aa", "bbbb"), cutoff_len=6) == (
        [("UaaAbb", "bb")], {"cut: answer cut at cutoff_len, its end-of-turn token is lost": 1})


@pytest.mark.parametrize("limit", [3, 4])
def test_a_prompt_without_room_for_an_answer_is_dropped_not_cut(tokenizer, limit):
    assert run(tokenizer, talk("aa", "bb"), cutoff_len=limit) == (
        [], {"dropped: the prompt alone exceeds cutoff_len": 1})


def test_the_prompt_is_not_trained_alone_either(tokenizer):
    assert run(tokenizer, talk("aa", "bb"), cutoff_len=4, train_on_prompt=True)[0] == []


def test_left_keeps_the_system_message_and_the_last_rounds(tokenizer):
    assert run(tokenizer, TALK, cutoff_len=10, on_long="left") == (
        [("SsUccAdd</s>", "dd</s>")], {"cut: whole first rounds left out to fit cutoff_len": 1})


def test_masked_history_trains_the_last_answer_that_is_kept(tokenizer):
    assert run(tokenizer, TALK, cutoff_len=10, mask_history=True)[0] == [("SsUaaAbb</s>", "bb</s>")]


def test_split_spreads_the_rounds(tokenizer):
    record = talk("aa", "bb", "cc", "dd", "ee", "ff", system="s")
    assert run(tokenizer, record, cutoff_len=16, on_long="split") == (
        [("SsUaaAbb</s>UccAdd</s>", "bb</s>dd</s>"), ("SsUeeAff</s>", "ff</s>")],
        {"cut: split into several examples": 1})


def test_drop_and_error(tokenizer):
    assert run(tokenizer, TALK, cutoff_len=10, on_long="drop") == ([], {"dropped: longer than cutoff_len": 1})
    with pytest.raises(DataError, match="f:1: 16 tokens, and cutoff_len is 10"):
        run(tokenizer, TALK, cutoff_len=10, on_long="error")


def test_a_dialogue_whose_answers_weigh_nothing_is_dropped(tokenizer):
    record = Conversation((Message("user", "a"), Message("assistant", "b", weight=0.0)), Origin("f", 1))
    assert run(tokenizer, record, cutoff_len=10) == ([], {"dropped: no trained token": 1})


@pytest.mark.parametrize(("on_long", "texts", "reason"), [
    ("right", ["abcd"], "cut: text cut at cutoff_len, its end-of-text token is lost"),
    ("left", ["def</s>"], "cut: start of the text cut at cutoff_len"),
    ("split", ["abcd", "ef</s>"], "cut: split into several examples"),
    ("drop", [], "dropped: longer than cutoff_len")])
def test_plain_text_is_trained_whole_and_cut_as_asked(tokenizer, on_long, texts, reason):
    found, reasons = run(tokenizer, Text("abcdef", Origin("f", 1)), cutoff_len=4, on_long=on_long)
    assert found == [(text, text) for text in texts] and reasons == {reason: 1}


def test_documents_end_with_one_end_of_text(tokenizer):
    context = EncodeContext(tokenizer, None, DataConfig(cutoff_len=2))
    found = encode_texts([Text("abc", Origin("f", 1)), Text("d</s>", Origin("f", 2))], context)
    assert [tokenizer.decode(one.input_ids) for one in found] == ["abc</s>", "d</s>"]
    assert all(one.trained.all() for one in found)


def test_order_is_kept_when_dialogue_and_text_are_mixed(tokenizer):
    rows = [Text("a", Origin("f", 1)), talk("b", "c"), Text("d", Origin("f", 3))]
    context = EncodeContext(tokenizer, resolve(None, tokenizer), DataConfig())
    assert [tokenizer.decode(one.input_ids) for one in encode_conversations(rows, context)] == [
        "a</s>", "UbAc</s>", "d</s>"]
