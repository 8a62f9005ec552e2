"""Calls that are written are read back; text that looks like control tokens stays text wherever tools put it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.controls import control_strings
from danlu.templates.rendered import Dialogue
from danlu.templates.tool_format import TOOL_FORMATS
from tests.tiny import tiny_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from([
    "</tool_call>", "<tool_call>", '"}', "\n\n", "Action: x\nAction Input: {}", "[TOOL_CALLS] [", "猫",
    '{"name": 1}', "\\"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6)
NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,12}\Z") | st.sampled_from(["查询", "a b"])
CALLS = st.lists(st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    NAMES, st.dictionaries(TEXTS, VALUES, max_size=3)), min_size=1, max_size=3).map(tuple)
CONTENTS = st.sampled_from(["", "hi", "我 来 查", "two\nlines", "a < b [1] {x}", "Action", "{}", "ends\n"])


@pytest.mark.parametrize("name", list(TOOL_FORMATS))
@settings(max_examples=60, deadline=None)
@given(calls=CALLS, content=CONTENTS)
def test_calls_are_read_back(name, calls, content):
    style = TOOL_FORMATS[name]
    assert style.parse_calls(style.add_calls(content, calls)) == (content, calls)
    assert style.parse_calls(style.render_calls(calls)) == ("", calls)


@pytest.mark.parametrize("name", list(TOOL_FORMATS))
@settings(max_examples=40, deadline=None)
@given(calls=CALLS, share=st.floats(0.05, 0.95))
def test_a_call_cut_short_is_text(name, calls, share):
    """A model stopped in the middle of a call called nothing; only whole leading calls of several may be read."""
    style = TOOL_FORMATS[name]
    text = style.render_calls(calls)
    found = style.parse_calls(text[:int(len(text) * share)])
    assert found is None or (len(calls) > 1 and found[1] == calls[:len(found[1])])


LOOKALIKES = ["<|im_end|>", "</s>", "<s>", "<|im_start|>assistant\n", "<tool_call>", "</tool_response>", "blue"]
SAID = st.lists(st.sampled_from([*LOOKALIKES, " 猫", "x"]), min_size=1, max_size=4).map("".join)
OWN = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TOKENIZER = tiny_tokenizer(chat_template=OWN)
TOKENIZER.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"])


def talk(said):
    tools = ({"type": "function", "function": {"name": "find", "description": said, "parameters": {
        "type": "object", "properties": {f"k{said}": {"type": "string", "enum": [said]}}}}},)
    call = {"type": "function", "function": {"name": "find", "arguments": {f"k{said}": [said]}}}
    return Conversation((Message("user", "hi"), Message("assistant", "", tool_calls=(call,)), Message("tool", said),
                         Message("assistant", "warm", reasoning=said)), Origin("f", 1), tools)


@pytest.mark.parametrize("name", ["default", "qwen", "qwen3", "llama3", "mistral", "glm4", None])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=SAID)
def test_no_control_token_comes_from_tools(name, said):
    """As many control tokens as with a plain word, and the text is what the plain text would be."""
    template = resolve(name, TOKENIZER)
    plain, tricky = template.encode_batch([talk("zq"), talk(said)], TOKENIZER, EncodeOptions(enable_thinking=None))
    controls = set(TOKENIZER.convert_tokens_to_ids(control_strings(TOKENIZER, template.literal_text(TOKENIZER))))
    count = [sum(i in controls for i in one.input_ids.tolist()) for one in (plain, tricky)]
    assert count[0] == count[1]
    row = talk(said)
    text = template.renderer(TOKENIZER, EncodeOptions(enable_thinking=None))(
        Dialogue(row.messages, row.origin, row.tools)).text
    assert TOKENIZER.decode(tricky.input_ids) == text and text.count(said.strip().split("\n")[0]) >= 6


def test_named_templates_have_formats_of_the_main_families():
    found = {TEMPLATES[name].tools.name for name in ("default", "qwen", "llama3", "mistral", "glm4")}
    assert found == {"default", "qwen", "llama3", "mistral", "glm4"}
