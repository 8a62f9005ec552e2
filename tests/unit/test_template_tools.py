"""Tools in dialogues: what carries loss, what is refused and how, what a broken call is; and reasoning beside them."""

import numpy as np
import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.base import single_token
from danlu.templates.tool_format import TOOL_FORMATS
from tests.tiny import CHATML, tiny_tokenizer

ORIGIN = Origin("talks.jsonl", 7)
SKY = {"type": "function", "function": {"name": "sky", "arguments": {"at": "noon"}}}
TOOL = {"type": "function", "function": {"name": "sky", "description": "colour", "parameters": {"type": "object"}}}
ASKED = (Message("user", "what colour"), Message("assistant", "", tool_calls=(SKY,)), Message("tool", "blue"),
         Message("assistant", "it is blue"))


def encode(template, messages=ASKED, tools=(TOOL,), tokenizer=None, **options):
    tokenizer = tokenizer or tiny_tokenizer()
    return template.encode_batch([Conversation(tuple(messages), ORIGIN, tools)], tokenizer, EncodeOptions(**options))[0]


def spoken(encoded):
    edges = np.flatnonzero(np.diff(np.concatenate([[False], encoded.trained, [False]]).astype(int)))
    return [tiny_tokenizer().decode(encoded.input_ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(("name", "call", "end"), [
    ("default", 'Action: sky\nAction Input: {"at": "noon"}', "</s>"),
    ("qwen", '<tool_call>\n{"name": "sky", "arguments": {"at": "noon"}}\n</tool_call>', "<|im_end|>"),
    ("llama3", '{"name": "sky", "parameters": {"at": "noon"}}', "</s>"),
    ("mistral", '[TOOL_CALLS] [{"name": "sky", "arguments": {"at": "noon"}}]', "</s>"),
    ("glm4", 'sky\n{"at": "noon"}', "</s>"),
])
def test_calls_carry_loss_definitions_and_results_do_not(name, call, end):
    first, second = spoken(encode(TEMPLATES[name]))
    assert first == call + end
    assert second.strip() == "it is blue" + end
    assert TEMPLATES[name].tools.parse_calls(call) == ("", (SKY,))


def test_answers_of_tools_in_a_row_share_a_turn_of_qwen():
    row = encode(TEMPLATES["qwen"], (*ASKED[:2], Message("tool", "blue"), Message("tool", "wet"), ASKED[3]))
    text = tiny_tokenizer().decode(row.input_ids)
    assert ("<|im_start|>user\n<tool_response>\nblue\n</tool_response>\n<tool_response>\nwet\n</tool_response>"
            "<|im_end|>\n<|im_start|>assistant\nit is blue") in text


def test_definitions_end_the_system_message():
    text = tiny_tokenizer().decode(encode(TEMPLATES["qwen3"], (Message("system", "be kind"), *ASKED)).input_ids)
    assert text.startswith("<|im_start|>system\nbe kind\n\n# Tools\n")
    assert "</tool_call><|im_end|>\n<|im_start|>user" in text
    text = tiny_tokenizer().decode(encode(TEMPLATES["mistral"], (Message("system", "be kind"), *ASKED)).input_ids)
    assert text.startswith("<s>[AVAILABLE_TOOLS] [{")
    assert "}][/AVAILABLE_TOOLS][INST] be kind\n\nwhat colour[/INST]" in text


def test_a_template_without_tools_names_those_that_have_them():
    for messages, tools in ((ASKED, ()), (ASKED[:1] + ASKED[3:], (TOOL,))):
        with pytest.raises(DataError, match="talks.jsonl:7.*chatml") as caught:
            encode(TEMPLATES["chatml"], messages, tools)
        named = ("default", "glm4", "llama3", "mistral", "qwen", "tool_format")
        assert all(name in str(caught.value) for name in named)
    for tools in ((TOOL,), ()):
        with pytest.raises(DataError, match="talks.jsonl:7.*leaves (them|the call) out") as caught:
            encode(resolve(None, tiny_tokenizer(chat_template=CHATML)), ASKED, tools)
        assert "qwen" in str(caught.value)


def test_calls_that_no_format_can_write_are_refused():
    for function, what in (({"name": "sky", "arguments": "{broken"}, "no JSON object"),
                           ({"name": "sky", "arguments": [1]}, "no JSON object"),
                           ({"arguments": {}}, "without a name")):
        with pytest.raises(DataError, match=f"talks.jsonl:7.*message 2.*{what}"):
            encode(TEMPLATES["qwen"], (ASKED[0], Message("assistant", "", tool_calls=({"function": function},))))
    with pytest.raises(DataError, match="talks.jsonl:7.*tool 1 has no name"):
        encode(TEMPLATES["qwen"], tools=({"description": "x"},))


@pytest.mark.parametrize("name", list(TOOL_FORMATS))
@pytest.mark.parametrize("text", [
    "", "hi", "Action: sky", "Action: sky\nAction Input: {", 'Action: sky\nAction Input: {"a": 1} and', "sky\n{'a': 1}",
    '<tool_call>\n{"name": "sky"}\n</tool_call>', '<tool_call>\n{"name": "sky", "arguments": {}}',
    '<tool_call>\n{"name": "sky", "arguments": "x"}\n</tool_call>', '[{"name": 1, "arguments": {}}]', "[]",
    "[TOOL_CALLS] []",
    '{"name": "sky", "parameters": {"a": NaN}}', '[{"name": "sky", "arguments": {}}, 3]', "[" * 5000])
def test_a_broken_call_is_text(name, text):
    assert TOOL_FORMATS[name].parse_calls(text) is None


def test_tool_format_is_chosen_by_name():
    assert resolve("chatml", tiny_tokenizer(), tool_format="qwen").tools is TOOL_FORMATS["qwen"]
    with pytest.raises(ConfigError, match='did you mean "qwen"'):
        resolve("chatml", tiny_tokenizer(), tool_format="qwe")
    with pytest.raises(ConfigError, match="tool_format.*in its own way"):
        resolve(None, tiny_tokenizer(chat_template=CHATML), tool_format="qwen")


def test_a_template_that_escapes_tools_is_refused():
    """Printed as Python shows them, marks cannot be taken out again, and quotation marks turn into others."""
    source = "{% if tools %}{{ tools | string }}{% endif %}" + CHATML
    tool = {"type": "function", "function": {"name": "sky", "description": "ends with <|im_end|>"}}
    own = resolve(None, tiny_tokenizer(chat_template=source))
    with pytest.raises(DataError, match="talks.jsonl:7.*escaped form"):
        encode(own, ASKED[:1] + ASKED[3:], (tool,))
    assert spoken(encode(own, ASKED[:1] + ASKED[3:])) == ["it is blue<|im_end|>"]


def test_a_token_added_later_is_found():
    tokenizer = tiny_tokenizer()
    assert single_token(tokenizer, "<tool_call>") is None
    tokenizer.add_tokens(["<tool_call>"])
    assert single_token(tokenizer, "<tool_call>") == len(tokenizer) - 1


THOUGHT = (Message("user", "hi"), Message("assistant", "blue", reasoning="sky"), Message("user", "and"),
           Message("assistant", "warm", reasoning="sun"))
INLINE = tuple(Message(m.role, f"<think>\n{m.reasoning}\n</think>\n\n{m.content}" if m.reasoning else m.content)
               for m in THOUGHT)


@pytest.mark.parametrize("messages", [THOUGHT, INLINE])
@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize(("options", "answers"), [
    ({}, ["blue", "<think>\nsun\n</think>\n\nwarm"]),
    ({"enable_thinking": None}, ["blue", "<think>\nsun\n</think>\n\nwarm"]),
    ({"enable_thinking": False}, ["blue", "warm"]),
    ({"preserve_thinking": True}, ["<think>\nsky\n</think>\n\nblue", "<think>\nsun\n</think>\n\nwarm"]),
    ({"preserve_thinking": True, "enable_thinking": False}, ["blue", "warm"]),
])
def test_reasoning_is_kept_or_dropped_as_the_options_say(messages, is_own, options, answers):
    """The same for the named template and for its Jinja when it comes with a tokenizer, inline or in a field."""
    tokenizer = tiny_tokenizer()
    TEMPLATES["qwen3"].prepare_tokenizer(tokenizer)
    template = resolve(None, tokenizer) if is_own else TEMPLATES["qwen3"]
    assert spoken(encode(template, messages, (), tokenizer, **options)) == [a + "<|im_end|>" for a in answers]


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize(("asks", "trained"), [(True, "<think>\n\n</think>\n\nblue"), (None, "blue"), (False, "blue")])
def test_the_empty_block_of_an_answer_without_reasoning(is_own, asks, trained):
    """Part of the answer when reasoning is asked for, masked otherwise; always in the text."""
    tokenizer = tiny_tokenizer()
    TEMPLATES["qwen3"].prepare_tokenizer(tokenizer)
    template = resolve(None, tokenizer) if is_own else TEMPLATES["qwen3"]
    row = encode(template, (Message("user", "hi"), Message("assistant", "blue")), (), tokenizer, enable_thinking=asks)
    assert spoken(row) == [trained + "<|im_end|>"]
    assert tokenizer.decode(row.input_ids).endswith("assistant\n<think>\n\n</think>\n\nblue<|im_end|>\n")


def test_reasoning_reaches_a_template_that_has_no_field_for_it():
    own = resolve(None, tiny_tokenizer(chat_template=CHATML))
    assert spoken(encode(own, THOUGHT, ()))[1] == "<think>\nsun\n</think>\n\nwarm<|im_end|>"
    assert spoken(encode(own, INLINE, ())) == spoken(encode(own, THOUGHT, ()))
    assert spoken(encode(own, INLINE, (), enable_thinking=False)) == ["blue<|im_end|>", "warm<|im_end|>"]


DROPS = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1].lstrip() }}")


def test_reasoning_that_a_template_leaves_out_is_said_or_refused(capsys):
    own = resolve(None, tiny_tokenizer(chat_template=DROPS))
    assert spoken(encode(own, THOUGHT, ())) == ["blue<|im_end|>", "warm<|im_end|>"]
    said = capsys.readouterr().err
    assert "no reasoning is trained (talks.jsonl:7" in said and "earlier answers is left out" in said
    with pytest.raises(ConfigError, match="preserve_thinking.*talks.jsonl:7"):
        encode(own, THOUGHT, (), preserve_thinking=True)
