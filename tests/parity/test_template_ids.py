"""For every named template and kind of tokenizer: our ids are those of the chat template that is saved with the model.

The one exception is stated and checked: where tokenising the whole text at once merges the last character of a
generation prompt with the first of the answer, apply_chat_template's training ids no longer begin with its own prompt
ids. There danlu keeps the prompt ids, because that is what the model is asked with.
"""

import pytest

from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions
from danlu.templates.named import control_like
from tests.parity.template_tokenizers import chinese, gpt2, sentencepiece_like
from tests.tiny import tiny_tokenizer

TALKS = [
    (Message("system", "be kind 你好"), Message("user", "what colour is the sky? 天空是什么颜色？"),
     Message("assistant", "Blue 蓝色。"), Message("user", "and sun"), Message("assistant", "warm")),
    (Message("user", "what is 猫"), Message("assistant", "the cat")),
    (Message("user", "\nwhat"), Message("assistant", "...yes\n\n"), Message("user", "hi "),
     Message("assistant", " 42")),
]
# Their generation prompt ends with a space, which byte-level and sentencepiece vocabularies merge with a word.
ENDS_WITH_A_SPACE = {"belle", "default_2023", "xverse"}


def as_dicts(messages):
    return [{"role": m.role, "content": m.content} for m in messages]


def check(tokenizer, name, messages):
    """Assert every promise for one dialogue; return whether apply_chat_template keeps its prompt ids."""
    template = TEMPLATES[name]
    encoded = template.encode_batch([Conversation(messages, Origin("f", 1))], tokenizer, EncodeOptions())[0]
    ours = encoded.input_ids.tolist()
    whole = tokenizer.apply_chat_template(as_dicts(messages), tokenize=True, return_dict=False)
    keeps = True
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    for index, (_, start, _) in zip(answers, encoded.turns, strict=True):
        prompt = template.encode_prompt(messages[:index], tokenizer)
        assert ours[:start] == prompt, (name, index)
        theirs = tokenizer.apply_chat_template(
            as_dicts(messages[:index]), tokenize=True, return_dict=False, add_generation_prompt=True)
        keeps = keeps and whole[:len(theirs)] == theirs
        if index == answers[0]:
            assert prompt == theirs, name
    assert not keeps or ours == whole, name
    assert tokenizer.decode(ours) == tokenizer.decode(whole), name
    return keeps


def check_all(tokenizer, *, with_control_tokens):
    """Return the templates whose ids differ from the saved chat template's on the plain dialogues."""
    differ = set()
    if with_control_tokens:
        strings = {s for name in TEMPLATES for s in control_like(TEMPLATES[name].literal_text(tokenizer))}
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(strings)})
    for name in TEMPLATES:
        TEMPLATES[name].prepare_tokenizer(tokenizer)
        kept = [check(tokenizer, name, talk) for talk in TALKS]
        if not all(kept[:2]):
            differ.add(name)
    return differ


@pytest.mark.parametrize("with_control_tokens", [True, False])
def test_byte_level(with_control_tokens):
    assert check_all(tiny_tokenizer(), with_control_tokens=with_control_tokens) <= ENDS_WITH_A_SPACE


@pytest.mark.parametrize("habit", ["first", "always", "legacy"])
def test_sentencepiece_like(habit):
    assert check_all(sentencepiece_like(habit), with_control_tokens=habit != "always") <= ENDS_WITH_A_SPACE


def test_gpt2(shared):
    """GPT-2 splits two newlines before a word, so formats whose prompt ends with an empty line belong here too."""
    differ = check_all(gpt2(shared), with_control_tokens=True)
    assert differ <= ENDS_WITH_A_SPACE | {"llama3", "llama4", "skywork_o1"}


def test_real_chinese_sentencepiece(shared, tmp_path):
    differ = check_all(chinese(shared, tmp_path), with_control_tokens=True)
    assert differ <= ENDS_WITH_A_SPACE
