"""Each data format: a row by hand becomes the record it should, and a broken row names pointer, found and expected."""

import pytest

from danlu.core.errors import ConfigError
from danlu.core.records import Conversation, Origin, Text
from danlu.data.row_format import FORMATS, Layout, RowProblem, detect

ORIGIN = Origin("file.jsonl", 7)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def read(name, row, layout=Layout(), kind=Conversation):
    return FORMATS[name]().read(row, layout, ORIGIN, kind)


def turns(record):
    return [(message.role, message.content) for message in record.messages]


ROWS = {
    "alpaca": {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]], "system": "s"},
    "sharegpt": {"conversations": [
        {"from": "system", "value": "s"}, {"from": "human", "value": "q0"}, {"from": "gpt", "value": "a0"},
        {"from": "human", "value": "q\ni"}, {"from": "gpt", "value": "a"}]},
    "openai": {"messages": [
        {"role": "developer", "content": "s"}, {"role": "user", "content": "q0"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "0"}]},
        {"role": "user", "content": "q\ni"}, {"role": "assistant", "content": "a"}]},
    "firefly": {"system": "s", "conversation": [
        {"human": "q0", "assistant": "a0"}, {"human": "q\ni", "assistant": "a"}]},
    "moss": {"meta_instruction": "s", "num_turns": 2, "chat": {
        "turn_2": {"Human": "<|Human|>: q\ni<eoh>\n", "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                   "Commands": "<|Commands|>: None<eoc>\n", "Tool Responses": "<|Results|>:\nNone\n<eor>\n",
                   "MOSS": "<|MOSS|>: a<eom>\n"},
        "turn_1": {"Human": "<|Human|>: q0<eoh>\n", "MOSS": "<|MOSS|>: a0<eom>\n"}}},
    "prompt_completion": {"system": "s", "prompt": [
        {"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, {"role": "user", "content": "q\ni"}],
        "completion": "a"},
}


@pytest.mark.parametrize("name", ROWS)
def test_the_same_dialogue_in_every_format_is_the_same_record(name):
    record = read(name, ROWS[name])
    assert turns(record) == [
        ("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q\ni"), ("assistant", "a")]
    assert record.origin is ORIGIN
    assert detect(ROWS[name]) == name


def test_every_registered_format_is_covered_here_or_with_the_preferences():
    assert set(FORMATS) == {*ROWS, "text", "preference", "hh", "ranked", "prompt"}


@pytest.mark.parametrize(("row", "name"), [
    ({"question": "2+2?", "answer": "4"}, "prompt_completion"),
    ({"input": "a", "target": "b", "kind": "NLI"}, "prompt_completion"),
    ({"instruction": "a", "context": "c", "response": "b"}, "alpaca"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "openai"),
    ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "sharegpt"),
    ({"text": "prose", "url": "x"}, "text"), ("prose", "text"), ({"body": "prose", "score": 3}, "text"),
    ({"a": "x", "b": "y"}, None), (3, None), ({}, None)])
def test_the_format_is_seen_from_the_keys(row, name):
    assert detect(row) == name


def test_a_declared_column_mapping_is_complete():
    """With `columns` present, an unlisted column is absent: the input and the history are not read."""
    row = {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]]}
    layout = Layout(columns={"prompt": "instruction", "response": "output"})
    assert turns(read("alpaca", row, layout)) == [("user", "q"), ("assistant", "a")]


def test_declared_columns_without_an_answer_are_plain_text():
    layout = Layout(columns={"prompt": "body"})
    assert read("alpaca", {"body": "prose", "text": "no"}, layout) == Text("prose", ORIGIN)
    assert read("alpaca", {"body": "prose"}, layout, Text) == Text("prose", ORIGIN)


def test_the_users_text_column_wins():
    assert read("text", {"text": "no", "body": "yes"}, Layout(text_column="body")) == Text("yes", ORIGIN)


def test_dialogue_as_prose_is_its_turns_one_below_the_other():
    assert read("alpaca", {"instruction": "q", "output": "a"}, kind=Text) == Text("q\na", ORIGIN)


def test_declared_tags_rename_roles_and_leave_the_rest_out():
    layout = Layout(tags={"role_tag": "role", "content_tag": "say", "user_tag": "me", "assistant_tag": "you"})
    row = {"conversations": [{"role": "me", "say": "q"}, {"role": "you", "say": "a"}]}
    assert turns(read("sharegpt", row, layout)) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(RowProblem, match=r'/conversations/0/role: found "human" \(string\), expected one of me, you'):
        read("sharegpt", {"conversations": [{"role": "human", "say": "q"}]}, layout)


def test_tools_and_calls_of_both_layouts_are_alike():
    tools = [{"name": "add"}]
    sharegpt = read("sharegpt", {"tools": '[{"name": "add"}]', "conversations": [
        {"from": "human", "value": "1"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "3"}]})
    openai = read("openai", {"tools": tools, "messages": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "2"}, {"role": "assistant", "content": "3"}]})
    assert sharegpt == openai
    assert sharegpt.tools == ({"name": "add"},)
    assert sharegpt.messages[1].tool_calls == (CALL,)


def test_weights_and_reasoning_of_messages_are_kept():
    record = read("openai", [
        {"role": "user", "content": "q", "loss_weight": 0}, {"role": "assistant", "content": "a", "weight": 0.5},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "r"}])
    assert [message.weight for message in record.messages] == [0.0, 0.5, None, None]
    assert record.messages[3].reasoning == "r"


def test_a_moss_plug_in_round_is_call_result_and_answer():
    chat = {"turn_1": {
        "Human": "<|Human|>: 1+1?<eoh>", "Inner Thoughts": "<|Inner Thoughts|>: compute<eot>",
        "Commands": '<|Commands|>: Calculate("1+1")<eoc>', "Tool Responses": "<|Results|>:\n2\n<eor>",
        "MOSS": "<|MOSS|>: 2<sup><|1|></sup><eom>"}}
    record = read("moss", {"chat": chat})
    assert turns(record) == [("user", "1+1?"), ("assistant", 'Calculate("1+1")'), ("tool", "2"),
                             ("assistant", "2<sup><|1|></sup>")]
    assert record.messages[1].reasoning == "compute"


def test_moss_dialogue_in_one_text_is_the_same():
    in_turns = read("moss", ROWS["moss"])
    text = ("<|Human|>: q0<eoh>\n<|MOSS|>: a0<eom>\n"
            "<|Human|>: q\ni<eoh>\n<|Inner Thoughts|>: None<eot>\n<|MOSS|>: a<eom>")
    assert read("moss", {"meta_instruction": "s", "chat": text}) == in_turns
    brackets = "[Human]: q0<eoh> [MOSS]: a0<eoa> [Human]: q\ni<eoh> [MOSS]: a<eoa>"
    row = {"meta_instruction": "s", "plain_text": brackets}
    assert detect(row) == "moss" and read("moss", row) == in_turns
    with pytest.raises(RowProblem, match="two turns of MOSS in a row"):
        read("moss", {"chat": "<|Human|>: q<eoh><|MOSS|>: a<eom><|MOSS|>: b<eom>"})


def test_lists_of_questions_and_answers_are_rounds():
    row = {"input": ["q0", "q1"], "output": ["a0", "a1"]}
    assert detect(row) == "prompt_completion"
    assert turns(read("prompt_completion", row)) == [
        ("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1")]
    with pytest.raises(RowProblem, match="/output: found 1 answers, expected 2, one for each of /input"):
        read("prompt_completion", {"input": ["q0", "q1"], "output": ["a0"]})


def test_turns_in_the_cell_of_a_table_are_read():
    cell = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]'
    record = read("openai", {"messages": cell})
    assert detect({"messages": cell}) == "openai" and turns(record) == [("user", "q"), ("assistant", "a")]
    assert record.messages[1].weight == 0.5
    with pytest.raises(RowProblem, match="/messages: found .* expected a list of turns"):
        read("openai", {"messages": cell[:-1]})


def test_weights_of_sharegpt_turns_are_kept():
    row = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]
    assert [message.weight for message in read("sharegpt", row).messages] == [None, 0.0]


def test_columns_that_are_declared_elsewhere_are_absent_in_every_format():
    """The rule holds for columns a format would find by itself: `system` is not listed, so it is not read."""
    layout = Layout(columns={"messages": "conversation"})
    row = {"system": "s", "conversation": [{"human": "q", "assistant": "a"}]}
    assert turns(read("firefly", row, layout)) == [("user", "q"), ("assistant", "a")]
    layout = Layout(columns={"prompt": "q", "response": "a"})
    assert turns(read("prompt_completion", {"q": "1", "a": "2", "system": "s"}, layout)) == [
        ("user", "1"), ("assistant", "2")]


def talk(*roles):
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    return {"conversations": [{"from": names[role], "value": "x"} for role in roles]}


@pytest.mark.parametrize(("roles", "message"), [
    (("assistant",), "/conversations/0/value: found an assistant turn as the first turn, expected user"),
    (("user",), "/conversations/0/value: found a dialogue that ends on a user turn"),
    (("user", "user"), "/conversations/1/value: found a user turn after a user turn, expected assistant"),
    (("user", "assistant", "assistant"), "/conversations/2/value: found an assistant turn after an assistant turn"),
    (("user", "assistant", "system"), "/conversations/2/value: found a system turn after an assistant turn"),
    (("user", "assistant", "user"), "/conversations/2/value: found a dialogue that ends on a user turn"),
    (("system",), "/conversations: found no turns"),
    ((), "/conversations: found no turns")])
def test_turns_out_of_place_are_named(roles, message):
    with pytest.raises(RowProblem) as caught:
        read("sharegpt", talk(*roles))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("name", "row", "message"), [
    ("alpaca", {"instruction": "q", "output": None}, "/output: found null, expected a string"),
    ("alpaca", {"instruction": "q", "output": ["a", "b"]}, "/output: found a list of 2 answers"),
    ("alpaca", {"instruction": "q", "output": " "}, "/output: found an empty assistant turn"),
    ("alpaca", {"instruction": "", "output": "a"}, "/instruction: found an empty user turn"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["x"]]}, "/history/0: found"),
    ("alpaca", {"output": "a"}, "/: found the keys output, expected a key instruction"),
    ("alpaca", "text", '/: found "text" (string), expected an object'),
    ("openai", [{"role": "user", "content": 3}], "/0/content: found 3 (number), expected a string or a list"),
    ("openai", [{"role": "user", "content": [{"type": "image"}]}], "/0/content/0: found"),
    ("openai", [{"role": "robot", "content": "x"}], '/0/role: found "robot" (string), expected one of'),
    ("openai", [{"role": "user", "content": "x", "weight": -1}], "/0/weight: found -1 (number)"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{"}]},
     "/conversations/1/value: found"),
    ("sharegpt", {"conversations": "x"}, '/conversations: found "x" (string), expected a list of turns'),
    ("firefly", {"conversation": [{"human": "q"}]}, "/conversation/0: found the keys human, expected a key assistant"),
    ("moss", {"chat": {"one": {}}}, "/chat/one: found"),
    ("text", {"a": "x", "b": "y"}, "/: found the keys a, b, expected a key text or content")])
def test_broken_rows_are_named(name, row, message):
    with pytest.raises(RowProblem) as caught:
        read(name, row)
    assert str(caught.value).startswith(message)


def test_unknown_formats_suggest_the_closest():
    with pytest.raises(ConfigError, match='did you mean "alpaca"'):
        FORMATS["alpacca"]
