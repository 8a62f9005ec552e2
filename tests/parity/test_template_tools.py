"""Tools against published strings, and against apply_chat_template with the chat template that is saved."""

import json
import re

import pytest

from danlu.core.records import Conversation, Message, Origin
from danlu.data.config import DataConfig
from danlu.data.loader import load_records
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.named import control_like
from danlu.templates.own import as_dicts
from danlu.templates.tool_format import TOOL_FORMATS
from tests.parity.template_tokenizers import sentencepiece_like
from tests.tiny import tiny_tokenizer

WITH_TOOLS = [name for name in TEMPLATES if TEMPLATES[name].tools]


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = (
    {"type": "function", "function": {"name": "get_sky", "description": 'the "colour" 颜色', "parameters": {
        "type": "object", "properties": {"where": {"type": "string"}, "n": {"type": "number"}},
        "required": ["where"]}}},
    {"name": "get_sun", "description": "flat", "parameters": {"type": "object", "properties": {}}},
)
TALKS = [
    (Message("user", "what colour is 天空"), Message("assistant", "", tool_calls=(call("get_sky", where="猫", n=1.5),)),
     Message("tool", "blue"), Message("assistant", "the sky is blue"), Message("user", "and sun"),
     Message("assistant", "warm")),
    (Message("system", "be kind"), Message("user", "hi"),
     Message("assistant", "wait", tool_calls=(call("get_sky", where="a\n\"b\"", n={"m": [1, None, True]}),
                                              call("get_sun"))),
     Message("tool", '{"a": 1}'), Message("tool", "wet\n"), Message("assistant", "it is")),
]


def test_published_strings(shared):
    """Every rendered call, every call read back, every definition; each string in both directions where it has two."""
    oracle = json.loads((shared / "data/chat_templates/_conformance/llamafactory_tool_expected.json").read_text())
    compared = 0
    for case in oracle["call"]:
        style, calls = TOOL_FORMATS[case["fmt"]], (call(oracle["function"]["name"], **oracle["function"]["arguments"]),)
        assert style.render_calls(calls * case["n"]) == case["expected"]
        assert style.parse_calls(case["expected"]) == ("", calls * case["n"])
        compared += 2 * case["n"]
    for case in oracle["extract"]:
        style = TOOL_FORMATS[case["fmt"]]
        content, calls = style.parse_calls(case["text"])
        found = [[c["function"]["name"], json.dumps(c["function"]["arguments"])] for c in calls]
        assert (content, found) == ("", case["expected"])
        assert style.render_calls(calls) == case["text"].strip()
        compared += 2 * len(calls)
    for case in oracle["tool_prompt"]:
        assert TOOL_FORMATS[case["fmt"]].render_tools(oracle["tools"]) == case["expected"]
        compared += 1
    assert compared >= 22


def with_tokens(tokenizer, name):
    template = TEMPLATES[name]
    strings = [*control_like(template.literal_text(tokenizer)), *template.tools.tags]
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(strings))})
    return tokenizer


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_ids_are_those_of_the_saved_chat_template(name):
    template = TEMPLATES[name]
    kinds = (tiny_tokenizer(), with_tokens(tiny_tokenizer(), name), with_tokens(sentencepiece_like("first"), name))
    for tokenizer in kinds:
        template.prepare_tokenizer(tokenizer)
        for tools in ((), TOOLS):
            for messages in TALKS:
                check(template, tokenizer, messages, tools)


def check(template, tokenizer, messages, tools):
    encoded = template.encode_batch([Conversation(messages, Origin("f", 1), tools)], tokenizer, EncodeOptions())[0]
    ours, chat = encoded.input_ids.tolist(), as_dicts(messages)
    theirs = tokenizer.apply_chat_template(chat, tools=list(tools) or None, tokenize=True, return_dict=False)
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)
    assert ours == theirs
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    for index, (_, start, _) in zip(answers, encoded.turns, strict=True):
        if template.thinking.is_managed and index != answers[-1]:
            continue  # the block of an answer goes when a user speaks again
        assert template.encode_prompt(messages[:index], tokenizer, tools=tools) == ours[:start]
    trained = tokenizer.decode(encoded.input_ids[encoded.trained])
    assert "get_sky" in trained and "blue" not in trained.split("the sky")[0] and "required" not in trained
    assert template.tools.parse_calls(trained.split("</s>")[0].split("<|")[0].strip()) is not None or "wait" in trained


@pytest.mark.parametrize("fmt", list(TOOL_FORMATS))
def test_any_named_template_with_any_format(fmt):
    """`tool_format` gives tools to a template that has none, with the saved chat template in step."""
    for name in ("chatml", "gemma", "default", "glm4"):
        tokenizer = tiny_tokenizer()
        template = resolve(name, tokenizer, tool_format=fmt)
        template.prepare_tokenizer(tokenizer)
        for messages in TALKS:
            check(template, tokenizer, messages, TOOLS)
    assert resolve("glm4", tiny_tokenizer(), tool_format="glm4") == TEMPLATES["glm4"]


def own_templates(shared):
    file = shared / "data/chat_templates/_conformance/jinja_cases.shared.jsonl"
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    return {case["id"]: case["template"] for case in cases if "tools" in case["template"]}


def test_own_templates_write_tools_or_refuse(shared):
    """Each real chat template with tools: ids as apply_chat_template and the call trained, or a clear error."""
    formats = []
    for name, source in own_templates(shared).items():
        strings = set(re.findall(r"<\|[^|<>\s']+\|>|</?think>|</?tool_call>|\[/?[A-Z_]+\]", source))
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(strings)})
        tokenizer.chat_template = source
        template = resolve(None, tokenizer)
        talk = Conversation(TALKS[0], Origin("talks.jsonl", 3), TOOLS[:1])
        try:
            encoded = template.encode_batch([talk], tokenizer, EncodeOptions(enable_thinking=None))[0]
        except Exception as error:
            assert "template" in str(error) and re.search("talks.jsonl:3|trial dialogue", str(error)), name
            continue
        chat = as_dicts(TALKS[0])
        theirs = tokenizer.apply_chat_template(chat, tools=list(TOOLS[:1]), tokenize=True, return_dict=False)
        assert encoded.input_ids.tolist()[:len(theirs) - 2] == theirs[:-2], name
        trained = tokenizer.decode(encoded.input_ids[encoded.trained])
        assert "get_sky" in trained and "warm" in trained and "required" not in trained, name
        style = template.tools_of(tokenizer)
        formats.append(style.name if style else None)
    assert len(formats) >= 6 and {"mistral", "llama3"} <= set(formats), formats


@pytest.mark.parametrize("name", ["default", "qwen", "qwen3", "llama3", "mistral", "ministral", "glm4"])
def test_a_saved_chat_template_is_understood(name):
    """What a named template saved is, to the next run, the tokenizer's own: the same ids, loss and format of tools."""
    template, tokenizer = TEMPLATES[name], with_tokens(tiny_tokenizer(), name)
    template.prepare_tokenizer(tokenizer)
    own = resolve(None, tokenizer)
    style = own.tools_of(tokenizer)
    assert style and style.parse_calls(template.tools.render_calls(TALKS[1][2].tool_calls))
    for messages in TALKS:
        rows = [one.encode_batch([Conversation(messages, Origin("f", 1), TOOLS)], tokenizer, EncodeOptions())[0]
                for one in (template, own)]
        assert rows[0].input_ids.tolist() == rows[1].input_ids.tolist()
        spans = [[tokenizer.decode(row.input_ids[a:b][row.trained[a:b]]) for _, a, b in row.turns] for row in rows]
        assert spans[0] == spans[1]


@pytest.mark.parametrize("name", ["default", "qwen", "llama3", "mistral", "glm4"])
def test_a_public_set_of_calls(shared, name):
    """Forty real dialogues: ids of the saved chat template, every call read back from what is trained, no other one."""
    data = DataConfig(dataset=("glaive_toolcall_en_demo",), dataset_dir=str(shared / "data/LLaMA-Factory/data"),
                      max_samples=40)
    records = load_records(data, Conversation)
    rows = [records[index] for index in range(len(records))]
    template, tokenizer = TEMPLATES[name], tiny_tokenizer()
    template.prepare_tokenizer(tokenizer)
    counted = 0
    for row, one in zip(rows, template.encode_batch(rows, tokenizer, EncodeOptions()), strict=True):
        theirs = tokenizer.apply_chat_template(
            as_dicts(row.messages), tools=list(row.tools) or None, tokenize=True, return_dict=False)
        assert one.input_ids.tolist() == theirs
        answers = [message for message in row.messages if message.role == "assistant"]
        for answer, (_, start, end) in zip(answers, one.turns, strict=True):
            text = tokenizer.decode(one.input_ids[start:end][one.trained[start:end]])
            found = template.tools.parse_calls(re.sub("</s>$|<[|]im_end[|]>$", "", text).strip())
            assert found == (("", answer.tool_calls) if answer.tool_calls else None)
            counted += bool(answer.tool_calls)
    assert counted >= 20
