"""Named templates against published expectations, and the tokenizer's own Jinja on real chat templates."""

import json
import re

import pytest

from danlu.core.errors import UserError
from danlu.core.records import Conversation, Message, Origin
from danlu.templates import TEMPLATES, EncodeOptions, resolve
from danlu.templates.named import control_like
from danlu.templates.own import TokenizerTemplate
from tests.tiny import tiny_tokenizer

BOS = {"llama3": "<|begin_of_text|>", "gemma2": "<bos>"}
ORIGIN = Origin("f", 1)


def with_tokens(strings, **special):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(strings), **special})
    return tokenizer


def test_prompt_and_answer_strings(shared):
    """Transcribed (prompt, answer) pairs; one pair for a whole dialogue is what mask_history trains."""
    file = shared / "data/chat_templates/_conformance/llamafactory_template_expected.json"
    cases = json.loads(file.read_text())["cases"]
    compared = 0
    for case in cases:
        template, options = TEMPLATES[case["template"]], case["options"]
        bos = BOS.get(case["template"])
        strings = control_like(template.literal_text(tiny_tokenizer()))
        tokenizer = with_tokens(strings, **({"bos_token": bos} if bos else {}))
        is_multi = "/multiturn/" in case["id"] and not options.get("discarding_history_cot")
        encoded = template.encode_batch(
            [Conversation(tuple(Message(m["role"], m["content"]) for m in case["messages"]), ORIGIN)], tokenizer,
            EncodeOptions(enable_thinking=options.get("enable_thinking"), preserve_thinking=is_multi))[0]
        assert tokenizer.decode(encoded.input_ids) == case["rendered"], case["id"]
        begin = 0
        pairs = []
        for _, answer, end in encoded.turns:
            pairs.append({"prompt": tokenizer.decode(encoded.input_ids[begin:answer]),
                          "answer": tokenizer.decode(encoded.input_ids[answer:end])})
            begin = end
        if len(case["turns"]) == 1:
            before = tokenizer.decode(encoded.input_ids[:encoded.turns[-1][1]])
            pairs = [{"prompt": before, "answer": pairs[-1]["answer"]}]
        assert pairs == case["turns"], case["id"]
        compared += 2 * len(pairs)
    assert compared >= 24


def jinja_cases(shared):
    file = shared / "data/chat_templates/_conformance/jinja_cases.shared.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def real_templates(shared):
    found = {case["id"]: case["template"] for case in jinja_cases(shared)}
    for file in sorted((shared / "data/chat_templates").glob("*/*.json")):
        data = json.loads(file.read_text())
        if isinstance(data.get("chat_template"), str):
            found[file.name] = data["chat_template"]
    for file in sorted((shared / "data/chat_templates").glob("*/**/*.jinja")):
        found[file.name] = file.read_text()
    return found


def test_our_sandbox_renders_published_cases(shared):
    """Byte for byte. `add_generation_prompt` is always defined here; Jamba takes it for true when it is not."""
    cases = jinja_cases(shared)
    for case in cases:
        context = {"add_generation_prompt": "Jamba" in case["id"], **case["context"]}
        assert TokenizerTemplate(case["template"]).render_context(context) == case["expected"], case["id"]
    assert len(cases) == 40


TALKS = {
    "one": [("user", "what colour is the sky? 天空"), ("assistant", "Blue 蓝色。")],
    "two": [("user", "hi"), ("assistant", "the"), ("user", "and a sun"), ("assistant", "warm")],
    "short": [("user", "a"), ("assistant", "a"), ("user", "t"), ("assistant", "t")],
    "system": [("system", "be kind"), ("user", "a"), ("assistant", "the mat")],
    "spaces": [("user", " hi \n"), ("assistant", " the mat\n")],
}


def test_own_jinja_on_real_templates(shared):
    """Ids equal apply_chat_template's (and at most one end-of-turn token more), answers and their ends are trained."""
    worked, refused = 0, {}
    for name, source in real_templates(shared).items():
        strings = set(re.findall(r"<\|[^|<>\s']+\|>|<｜[^｜]+｜>|<[a-z_]+_of_turn>|\[/?INST\]|</?think>", source))
        tokenizer = with_tokens(strings)
        tokenizer.chat_template = source
        template = resolve(None, tokenizer)
        for talk in TALKS.values():
            messages = tuple(Message(role, content) for role, content in talk)
            try:
                encoded = template.encode_batch(
                    [Conversation(messages, ORIGIN)], tokenizer, EncodeOptions(enable_thinking=None))[0]
            except UserError as error:
                refused[name] = str(error)
                continue
            check_own(name, template, tokenizer, messages, encoded)
            worked += 1
    assert worked > 170 and len(refused) < 10, refused
    assert all("template" in text for text in refused.values())


def check_own(name, template, tokenizer, messages, encoded):
    ours = encoded.input_ids.tolist()
    chat = [{"role": m.role, "content": m.content} for m in messages]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    common = next((i for i, (a, b) in enumerate(zip(ours, whole, strict=False)) if a != b), min(len(ours), len(whole)))
    assert len(ours) - common <= 1 and common >= len(whole) - 2, name
    answers = [m.content.strip() for m in messages if m.role == "assistant"]
    for answer, (_, start, end) in zip(answers, encoded.turns, strict=True):
        ids = [i for i, is_trained in zip(ours[start:end], encoded.trained[start:end], strict=True) if is_trained]
        assert answer in tokenizer.decode(ids), name
    last = [i for i, is_trained in zip(ours, encoded.trained, strict=True) if is_trained][-1]
    assert last in tokenizer.all_special_ids, name
    if len(answers) == 1 and (messages[0].role != "system" or messages[0].content in tokenizer.decode(ours)):
        prompt = template.encode_prompt(messages[:-1], tokenizer)
        theirs = tokenizer.apply_chat_template(chat[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
        assert prompt == theirs == ours[:len(theirs)], name


@pytest.mark.parametrize("content", ["<think>\nwhy\n</think>\n\nwarm", "warm"])
def test_own_qwen3_like_reasoning(content):
    """The reasoning of the final answer is trained, the opening tag of a template that writes it is not."""
    source = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') "
              "if not loop.last else m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    tokenizer = with_tokens(["<think>", "</think>"])
    tokenizer.chat_template = source
    messages = (Message("user", "hi"), Message("assistant", "<think>\na\n</think>\n\nthe"), Message("user", "and"),
                Message("assistant", content))
    encoded = resolve(None, tokenizer).encode_batch([Conversation(messages, ORIGIN)], tokenizer, EncodeOptions())[0]
    spans = [encoded.input_ids[a:b][encoded.trained[a:b]] for _, a, b in encoded.turns]
    assert [tokenizer.decode(s) for s in spans] == ["the<|im_end|>", content + "<|im_end|>"]


@pytest.mark.parametrize(("case", "written"), [
    ("hfjs/meta-llama/Llama-3.1-8B-Instruct", '{"name": "get_sky", "parameters": {"where": "sky"}}<|eot_id|>'),
    ("hfjs/ai21labs/AI21-Jamba-Large-1.6",
     ' <tool_calls>[\n    {"name": "get_sky", "arguments": {"where": "sky"}}\n]</tool_calls><|eom|>'),
])
def test_own_jinja_trains_tool_calls(shared, case, written):
    """A call is an answer; what the tool returns is not."""
    source = next(c["template"] for c in jinja_cases(shared) if c["id"] == case)
    tokenizer = with_tokens(set(re.findall(r"<\|[^|<>\s']+\|>", source)))
    tokenizer.chat_template = source
    tool = {"type": "function", "function": {"name": "get_sky", "description": "colour", "parameters": {
        "type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]}}}
    call = {"type": "function", "function": {"name": "get_sky", "arguments": {"where": "sky"}}}
    messages = (Message("user", "what colour"), Message("assistant", "", tool_calls=(call,)), Message("tool", "blue"),
                Message("assistant", "the sky is blue"))
    encoded = resolve(None, tokenizer).encode_batch(
        [Conversation(messages, ORIGIN, (tool,))], tokenizer, EncodeOptions(enable_thinking=None))[0]
    spans = [tokenizer.decode(encoded.input_ids[a:b][encoded.trained[a:b]]) for _, a, b in encoded.turns]
    assert spans[0] == written and spans[1].strip().startswith("the sky is blue<|e") and len(spans) == 2
