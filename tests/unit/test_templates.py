"""What encoding promises: which tokens carry loss, where rounds begin, what is refused, what is said."""

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.named import NamedTemplate
from tests.tiny import CHATML, tiny_tokenizer

ORIGIN = Origin("talks.jsonl", 7)
TALK = (
    Message("system", "be kind"), Message("user", "what colour is sky"), Message("assistant", "blue"),
    Message("user", "and 太阳"), Message("assistant", "warm 猫"),
)


def encode(template, messages=TALK, tokenizer=None, **options):
    tokenizer = tokenizer or tiny_tokenizer()
    return template.encode_batch([Conversation(tuple(messages), ORIGIN)], tokenizer, EncodeOptions(**options))[0]


def spoken(encoded, tokenizer=None):
    """Return the trained text of each run of trained tokens."""
    tokenizer = tokenizer or tiny_tokenizer()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], encoded.trained, [False]]).astype(int)))
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_every_assistant_turn_is_trained_with_its_end_token():
    assert spoken(encode(TEMPLATES["default"])) == ["blue</s>", "warm 猫</s>"]
    assert spoken(encode(TEMPLATES["chatml"])) == ["blue<|im_end|>", "warm 猫<|im_end|>"]
    own = resolve(None, tiny_tokenizer(chat_template=CHATML))
    assert spoken(encode(own)) == ["blue<|im_end|>", "warm 猫<|im_end|>"]


def test_eos_is_trained_though_pad_is_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode(TEMPLATES["default"], tokenizer=tokenizer)
    ends = [encoded.input_ids[end - 2] for _, _, end in encoded.turns]  # the newline is the last token of a round
    assert ends == [tokenizer.eos_token_id] * 2
    assert all(encoded.trained[end - 2] and not encoded.trained[end - 1] for _, _, end in encoded.turns)


def test_rounds_tile_the_row_behind_the_system_message():
    tokenizer = tiny_tokenizer()
    for template in (TEMPLATES["chatml"], resolve(None, tiny_tokenizer(chat_template=CHATML))):
        encoded = encode(template)
        (start, answer, end), (start2, answer2, end2) = encoded.turns
        assert tokenizer.decode(encoded.input_ids[:start]) == "<|im_start|>system\nbe kind<|im_end|>\n"
        assert tokenizer.decode(encoded.input_ids[start:answer]).endswith("<|im_start|>assistant\n")
        assert end == start2 < answer2 < end2 == len(encoded.input_ids)


def test_options_choose_what_carries_loss():
    whole = encode(TEMPLATES["chatml"], train_on_prompt=True)
    assert whole.trained.all() and whole.weights is None
    assert spoken(encode(TEMPLATES["chatml"], mask_history=True)) == ["warm 猫<|im_end|>"]


def test_message_weights():
    """weight 0 takes a turn out, 0.5 scales its tokens, an explicit weight outranks mask_history."""
    messages = (*TALK[:2], Message("assistant", "blue", weight=0.0), *TALK[3:])
    assert spoken(encode(TEMPLATES["chatml"], messages)) == ["warm 猫<|im_end|>"]
    messages = (*TALK[:2], Message("assistant", "blue", weight=0.5), *TALK[3:])
    encoded = encode(TEMPLATES["chatml"], messages, mask_history=True)
    assert spoken(encoded) == ["blue<|im_end|>", "warm 猫<|im_end|>"]
    (_, a, end), (_, b, end2) = encoded.turns
    assert set(encoded.weights[a:end - 1]) == {0.5} and set(encoded.weights[b:end2]) == {1.0}


def test_default_system_comes_from_the_options_then_from_the_template():
    tokenizer = tiny_tokenizer()
    text = tokenizer.decode(encode(TEMPLATES["qwen"], TALK[1:]).input_ids)
    assert text.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    text = tokenizer.decode(encode(TEMPLATES["qwen"], TALK[1:], default_system="你好").input_ids)
    assert text.startswith("<|im_start|>system\n你好<|im_end|>\n<|im_start|>user\n")
    own = resolve(None, tiny_tokenizer(chat_template=CHATML))
    weighted = (TALK[1], Message("assistant", "blue", weight=0.0), *TALK[3:])
    assert spoken(encode(own, weighted, default_system="你好")) == ["warm 猫<|im_end|>"]


def test_the_ids_of_a_prompt_are_a_prefix_of_what_was_trained():
    """ "Assistant: " and "blue" would merge into one token " blue" when the text is tokenised as a whole."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([" blue"])
    for name in ("xverse", "belle", "default_2023"):
        encoded = encode(TEMPLATES[name], TALK[1:], tokenizer)
        for count, (_, answer, _) in zip((1, 3), encoded.turns, strict=True):
            prompt = TEMPLATES[name].encode_prompt(TALK[1:1 + count], tokenizer)
            assert prompt == encoded.input_ids[:answer].tolist()
        assert spoken(encoded, tokenizer)[0].startswith("blue</s>")


def test_thinking_is_kept_in_the_final_answer_only():
    messages = (
        Message("user", "hi"), Message("assistant", "blue", reasoning="sky"),
        Message("user", "and"), Message("assistant", "warm", reasoning="sun"))
    assert spoken(encode(TEMPLATES["qwen3"], messages)) == [
        "blue<|im_end|>", "<think>\nsun\n</think>\n\nwarm<|im_end|>"]
    kept = encode(TEMPLATES["qwen3"], messages, preserve_thinking=True)
    assert spoken(kept)[0] == "<think>\nsky\n</think>\n\nblue<|im_end|>"
    none = encode(TEMPLATES["qwen3"], messages, enable_thinking=False)
    assert spoken(none)[-1] == "warm<|im_end|>"
    prompt = TEMPLATES["qwen3"].encode_prompt(messages[:3], tiny_tokenizer(), enable_thinking=False)
    assert prompt == none.input_ids[:none.turns[-1][1]].tolist()


def test_a_stop_string_the_tokenizer_lacks_gives_way_to_eos(capsys):
    tokenizer = tiny_tokenizer()
    encoded = encode(TEMPLATES["gemma"], TALK, tokenizer)
    assert spoken(encoded) == ["blue</s>", "warm 猫</s>"]
    said = capsys.readouterr().err
    assert "answers end with </s>" in said
    assert "<start_of_turn>" in said and "add_special_tokens" in said and said.count("notice") == 1
    assert TEMPLATES["gemma"].stop_token_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    assert spoken(encode(TEMPLATES["gemma"], TALK, tokenizer), tokenizer)[0] == "blue<end_of_turn>"
    assert len(TEMPLATES["gemma"].stop_token_ids(tokenizer)) == 2


def test_tokenizers_without_offsets():
    """ByT5 is written in Python and knows no offsets; a byte is a token, and eos swallows the newline behind it."""
    tokenizer = ByT5Tokenizer()
    encoded = encode(TEMPLATES["default"], TALK, tokenizer)
    assert spoken(encoded, tokenizer) == ["blue</s>", "warm 猫</s>"]
    (start, answer, end), _ = encoded.turns
    assert tokenizer.decode(encoded.input_ids[start:answer]) == "Human: what colour is sky</s>Assistant:"
    assert end - answer == len(b"blue") + 1
    prompt = TEMPLATES["default"].encode_prompt(TALK[:-1], tokenizer)
    assert prompt == encoded.input_ids[:encoded.turns[-1][1]].tolist()


def test_many_prompts_at_once():
    tokenizer = tiny_tokenizer()
    talks = [Conversation(TALK[:2], ORIGIN), Conversation(TALK[:4], ORIGIN), Conversation(TALK[1:2], ORIGIN)]
    for template in (TEMPLATES["qwen"], resolve(None, tiny_tokenizer(chat_template=CHATML))):
        rows = template.encode_prompts(talks, tokenizer, EncodeOptions(enable_thinking=None))
        assert rows == [template.encode_prompt(talk.messages, tokenizer) for talk in talks]


def test_resolve(capsys):
    assert resolve("chatml", tiny_tokenizer()) is TEMPLATES["chatml"]
    assert resolve(None, tiny_tokenizer()) is TEMPLATES["default"]
    assert "no chat template" in capsys.readouterr().err
    assert not isinstance(resolve(None, tiny_tokenizer(chat_template=CHATML)), NamedTemplate)
    with pytest.raises(ConfigError, match='did you mean "default"'):
        resolve("defualt", tiny_tokenizer())


def test_refusals_name_the_row():
    alternate = "{{ raise_exception('roles must alternate') if messages[0]['role'] == 'system' }}" + CHATML
    cases = [
        (TEMPLATES["chatml"], (Message("user", "hi"),), "no assistant turn"),
        (TEMPLATES["chatml"], (*TALK[1:], Message("system", "late")), "system message"),
        (TEMPLATES["llama2"], (Message("system", "x"), Message("assistant", "hi")), "needs a user message"),
        (resolve(None, tiny_tokenizer(chat_template=alternate)), TALK, "roles must alternate"),
        (resolve(None, tiny_tokenizer(chat_template="{{ messages[0].content }}")), TALK, "chat template"),
    ]
    for template, messages, what in cases:
        with pytest.raises(Exception, match=what) as caught:
            encode(template, messages)
        assert "fix" in str(caught.value) or "talks.jsonl:7" in str(caught.value)
    with pytest.raises(DataError, match="talks.jsonl:7"):
        encode(TEMPLATES["chatml"], (Message("user", "hi"),))


def test_prepare_tokenizer_sets_template_and_pad():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    TEMPLATES["default"].prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == "<pad>" and "Human: " in tokenizer.chat_template
    bare = tiny_tokenizer()
    bare.pad_token = "</s>"
    TEMPLATES["default"].prepare_tokenizer(bare)
    assert bare.pad_token == "</s>"


def test_an_open_final_answer_is_closed():
    """Some chat templates end with the last answer's text: its end could not be learned."""
    source = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
              "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}<|im_end|><|im_start|>assistant\n{% endif %}")
    own = resolve(None, tiny_tokenizer(chat_template=source))
    assert spoken(encode(own)) == ["blue<|im_end|>", "warm 猫<|im_end|>"]
