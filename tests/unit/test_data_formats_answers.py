"""Preference pairs, ranked lists, verdicts and prompts in every layout: the best answer first, broken rows named."""

import json

import pytest

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Feedback, Origin, Preference, Prompt, Text
from danlu.data.config import DataConfig
from danlu.data.loader import load_records
from danlu.data.row_format import FORMATS, Layout, RowProblem, detect

ORIGIN = Origin("file.jsonl", 7)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def said(role, text):
    return {"role": role, "content": text}


BEFORE = [said("user", "q0"), said("assistant", "a0"), said("user", "q")]
TALK = [{"from": "human", "value": "q0"}, {"from": "gpt", "value": "a0"}, {"from": "human", "value": "q"}]
TRANSCRIPT = "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:"

# Every row asks q0, hears a0, asks q, and prefers "good" to "bad".
PAIRS = {
    "alpaca pair": ("alpaca", {"instruction": "q", "input": "", "history": [["q0", "a0"]], "output": "x",
                               "chosen": "good", "rejected": "bad"}),
    "alpaca list": ("alpaca", {"instruction": "q", "input": "", "history": [["q0", "a0"]], "output": ["good", "bad"]}),
    "sharegpt": ("sharegpt", {"conversations": TALK, "chosen": {"from": "gpt", "value": "good"},
                              "rejected": {"from": "gpt", "value": "bad"}}),
    "sharegpt texts": ("sharegpt", {"conversations": TALK, "chosen": "good", "rejected": "bad"}),
    "openai": ("openai", {"messages": BEFORE, "chosen": said("assistant", "good"), "rejected": "bad"}),
    "implicit prompt": ("preference", {"chosen": [*BEFORE, said("assistant", "good")],
                                       "rejected": [*BEFORE, said("assistant", "bad")]}),
    "prompt and dialogues": ("preference", {"prompt": "q", "chosen": [*BEFORE, said("assistant", "good")],
                                            "rejected": [*BEFORE, said("assistant", "bad")]}),
    "prompt and answers": ("preference", {"prompt": BEFORE, "chosen": [said("assistant", "good")],
                                          "rejected": [said("assistant", "bad")]}),
    "prompt transcript": ("preference", {"prompt": TRANSCRIPT, "chosen": "good", "rejected": "bad"}),
    "hh": ("hh", {"chosen": f"{TRANSCRIPT} good", "rejected": f"{TRANSCRIPT} bad"}),
    "ranks beside": ("ranked", {"prompt": BEFORE, "responses": ["bad", "good"], "ranks": [2, 1]}),
    "scores beside": ("ranked", {"prompt": BEFORE, "answers": ["bad", "good"], "scores": [-0.5, 3]}),
    "ranks inside": ("ranked", {"prompt": TRANSCRIPT, "answers": [{"answer": "bad", "rank": 2.0},
                                                                  {"answer": "good", "rank": 1.0}]}),
    "scores inside": ("ranked", {"prompt": BEFORE, "completions": [{"response": "bad", "overall_score": 4},
                                                                   {"response": "good", "overall_score": 9}]}),
}


def read(name, row, kind=Preference, layout=Layout()):
    return FORMATS[name]().read(row, layout, ORIGIN, kind)


def texts(messages):
    return [message.content for message in messages]


@pytest.mark.parametrize("layout", PAIRS)
def test_the_same_preference_in_every_layout_is_the_same_record(layout):
    name, row = PAIRS[layout]
    record = read(name, row)
    assert [(message.role, message.content) for message in record.prompt] == [
        ("user", "q0"), ("assistant", "a0"), ("user", "q")]
    assert [(message.role, message.content) for message in record.answers] == [
        ("assistant", "good"), ("assistant", "bad")]
    assert detect(row, Preference) == name


@pytest.mark.parametrize("layout", PAIRS)
def test_preference_rows_are_prompts_too_and_never_dialogue(layout):
    name, row = PAIRS[layout]
    assert texts(read(name, row, Prompt).messages) == ["q0", "a0", "q"]
    if Conversation not in FORMATS[name].kinds:
        with pytest.raises(DataError, match="give no dialogue"):
            read(name, row, Conversation)


def test_declared_preference_columns_are_read_by_their_names():
    layout = Layout(columns={"prompt": "ask", "query": None, "system": "who", "chosen": "plus", "rejected": "minus"})
    record = read("alpaca", {"ask": "q", "who": "s", "plus": "good", "minus": "bad", "input": "no"}, layout=layout)
    assert texts(record.prompt) == ["s", "q"] and texts(record.answers) == ["good", "bad"]
    tags = {"role_tag": "r", "content_tag": "c", "user_tag": "me", "assistant_tag": "you", "function_tag": "call"}
    layout = Layout(columns={"messages": "talk", "chosen": "plus", "rejected": "minus"}, tags=tags)
    record = read("sharegpt", {
        "talk": [{"r": "me", "c": "q"}], "plus": {"r": "call", "c": '{"name": "add", "arguments": {"a": 1}}'},
        "minus": {"r": "you", "c": "bad"}}, layout=layout)
    assert record.answers[0].tool_calls == (CALL,) and record.answers[1].content == "bad"


def test_k_answers_are_sorted_best_first():
    """Ranks 3 1 4 2 put the second answer first, then the fourth, the first, the third; scores run the other way."""
    answers = ["c", "a", "d", "b"]
    assert texts(read("ranked", {"prompt": "q", "responses": answers, "ranks": [3, 1, 4, 2]}).answers) == list("abcd")
    assert texts(read("ranked", {"prompt": "q", "responses": answers, "scores": [3, 1, 4, 2]}).answers) == list("dcba")
    assert texts(read("alpaca", {"instruction": "q", "output": answers}).answers) == answers
    several = {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}
    assert texts(read("preference", several).answers) == ["a", "b", "c"]


def test_tools_of_preference_data_are_kept():
    row = PAIRS["sharegpt"][1] | {"tools": '[{"name": "add"}]'}
    assert read("sharegpt", row).tools == ({"name": "add"},)


@pytest.mark.parametrize(("name", "row", "message"), [
    ("alpaca", {"instruction": "q", "output": ["same", "same "]},
     "/output/1: found the same answer as in /output/0, expected answers that differ"),
    ("alpaca", {"instruction": "q", "output": ["one"]}, "/output: found 1 answers, expected two or more"),
    ("alpaca", {"instruction": "q", "output": ["one", " "]}, "/output/1: found an empty answer"),
    ("alpaca", {"instruction": "q", "output": "one"}, "/: found the keys instruction, output, expected a key chosen"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": None}, "/rejected: found null, expected an answer"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "/rejected: found the same answer as in /chosen"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": said("user", "b")},
     "/rejected/content: found a user turn"),
    ("preference", {"chosen": [said("user", "q"), said("assistant", "a")],
                    "rejected": [said("user", "other"), said("assistant", "b")]},
     "/rejected/1/content: found turns before the answer that differ"),
    ("preference", {"prompt": "other", "chosen": [said("user", "q"), said("assistant", "a")],
                    "rejected": [said("user", "q"), said("assistant", "b")]},
     "/chosen/1/content: found turns before the answer that differ from the prompt of the row"),
    ("preference", {"chosen": "a", "rejected": "b"}, "/: found no turns, expected at least one user turn"),
    ("preference", {"prompt": [said("user", "q"), said("assistant", "x")], "chosen": "a", "rejected": "b"},
     "/prompt/1/content: found a dialogue that ends on an assistant turn, expected a user turn or a tool turn"),
    ("sharegpt", {"conversations": TALK[:2], "chosen": "a", "rejected": "b"},
     "/conversations/1/value: found a dialogue that ends on an assistant turn"),
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
     "/rejected: found turns before the last answer that are not those of the chosen one"),
    ("hh", {"chosen": "\n\nHuman: q\n\nHuman: p\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nHuman: p\n\nAssistant: b"},
     "/chosen: found a user turn after a user turn"),
    ("hh", {"chosen": "hello", "rejected": "b"}, '/chosen: found "hello" (string), expected a transcript'),
    ("ranked", {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]},
     "/ranks/1: found 1 (number), as for answer 1, expected answers of which one is better"),
    ("ranked", {"prompt": "q", "responses": ["a", "b"], "ranks": [1]}, "/ranks: found [1] (list), expected a list"),
    ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": ["x", 1]}, '/scores/0: found "x" (string)'),
    ("ranked", {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]},
     "/responses/1/rank: found null"),
    ("ranked", {"prompt": "q", "responses": ["a", "b"]}, "/responses: found answers without order"),
    ("ranked", {"prompt": "q", "responses": [3, "b"], "ranks": [1, 2]}, "/responses/0: found 3 (number)")])
def test_broken_preference_rows_are_named(name, row, message):
    with pytest.raises(RowProblem) as caught:
        read(name, row)
    assert str(caught.value).startswith(message)


VERDICTS = {
    "openai": {"messages": [said("user", "q"), said("assistant", "a")], "label": True},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "kto_tag": "true"},
    "prompt_completion": {"prompt": [said("user", "q")], "completion": [said("assistant", "a")], "label": 1},
    "firefly": {"conversation": [{"human": "q", "assistant": "a"}], "label": True},
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_in_every_format(name):
    row = VERDICTS[name]
    record = read(name, row, Feedback)
    assert texts(record.messages) == ["q", "a"] and record.desirable is True
    key = "label" if "label" in row else "kto_tag"
    assert read(name, row | {key: False}, Feedback).desirable is False
    assert read(name, row | {key: "False"}, Feedback).desirable is False
    assert detect(row, Feedback) == name
    with pytest.raises(RowProblem, match=f"/{key}: found null, expected true or false"):
        read(name, row | {key: None}, Feedback)
    with pytest.raises(RowProblem, match="expected a key kto_tag or label"):
        read(name, {other: value for other, value in row.items() if other != key}, Feedback)


def test_a_declared_verdict_column_is_read_and_an_undeclared_one_absent():
    row = {"instruction": "q", "output": "a", "good": False, "label": True}
    columns = {"prompt": "instruction", "response": "output"}
    assert read("alpaca", row, Feedback, Layout(columns=columns | {"kto_tag": "good"})).desirable is False
    with pytest.raises(RowProblem, match="expected a verdict column, declared as kto_tag"):
        read("alpaca", row, Feedback, Layout(columns=columns))


@pytest.mark.parametrize(("name", "row", "asked", "extra"), [
    ("prompt", {"user_prompt": "q"}, ["q"], {}),
    ("prompt", {"prompt": [said("system", "s"), said("user", "q")], "reward_model": {"ground_truth": "72"}},
     ["s", "q"], {"reward_model": {"ground_truth": "72"}}),
    ("prompt_completion", {"question": "q", "answer": "72", "level": 3}, ["q"], {"answer": "72", "level": 3}),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a", "system": "s"}, ["s", "q\ni"],
     {"output": "a", "response": "a"}),
    ("alpaca", {"instruction": "q", "answer": 4}, ["q"], {"answer": 4}),
    ("sharegpt", {"conversations": TALK, "id": 5}, ["q0", "a0", "q"], {"id": 5}),
    ("openai", {"messages": [*BEFORE, said("assistant", "a")], "id": 5}, ["q0", "a0", "q"],
     {"id": 5, "response": "a"}),
    ("openai", [said("user", "q"), said("assistant", "a")], ["q"], {"response": "a"}),
    ("text", {"text": "q", "answer": 4}, ["q"], {"answer": 4}),
    ("text", "q", ["q"], {})])
def test_prompts_keep_what_a_reward_may_need(name, row, asked, extra):
    record = read(name, row, Prompt)
    assert texts(record.messages) == asked and record.extra == extra
    assert detect(row, Prompt) == name


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train_file=str(path))


@pytest.mark.parametrize(("row", "kind", "message"), [
    ({"text": "prose"}, Preference, "no preference pairs in a row that has the keys text"),
    ({"instruction": "q", "output": "a"}, Preference, "no preference pairs in a row that has the keys instruction"),
    ({"text": "prose"}, Feedback, "no verdicts in a row that has the keys text"),
    ({"chosen": f"{TRANSCRIPT} a", "rejected": f"{TRANSCRIPT} b"}, Conversation, "holds a preference pair"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, Text, "holds a preference pair"),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [2, 1]}, Conversation, "holds ranked answers"),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [2, 1]}, Text, "holds ranked answers")])
def test_data_of_another_kind_is_refused_in_words(tmp_path, row, kind, message):
    with pytest.raises(DataError, match=message) as caught:
        len(load_records(write(tmp_path / "a.jsonl", [row]), kind))
    assert caught.value.where == f"{tmp_path}/a.jsonl:1"


def test_files_of_two_kinds_say_which_row_is_of_the_other(tmp_path):
    config = write(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}, VERDICTS["openai"]])
    with pytest.raises(DataError, match="found the keys messages, label, expected a key instruction") as caught:
        len(load_records(config, Conversation))
    assert caught.value.where == f"{tmp_path}/a.jsonl:2" and "this row looks like openai" in caught.value.fix


def test_dialogue_with_verdicts_warns_when_they_are_not_read(tmp_path, capsys):
    assert len(load_records(write(tmp_path / "a.jsonl", [VERDICTS["openai"]]), Conversation)) == 1
    assert 'the column "label" holds verdicts, which this stage does not read' in capsys.readouterr().err


def test_a_lone_question_and_pictures_are_said_not_passed_over(tmp_path, capsys):
    assert len(load_records(write(tmp_path / "a.jsonl", [{"prompt": "q", "score": 3}]), Conversation)) == 1
    assert "no column is an answer, so the only text is trained as prose" in capsys.readouterr().err
    row = {"messages": [{"role": "user", "content": "<image> q"}, {"role": "assistant", "content": "a"}],
           "images": ["a.png"]}
    assert len(load_records(write(tmp_path / "b.jsonl", [row]), Conversation)) == 1
    assert 'the column "images" is not read' in capsys.readouterr().err
    assert len(load_records(write(tmp_path / "c.jsonl", [{"text": "prose"}]), Conversation)) == 1
    assert "no column is an answer" not in capsys.readouterr().err
