"""The real public files: every row of every data set of the seeds is read, and counts equal those of plain json."""

import json
from pathlib import Path

import pytest

from danlu.core.records import Conversation, Text
from danlu.data.config import DataConfig
from danlu.data.loader import load_records

pytestmark = pytest.mark.shared
FACTORY = "data/LLaMA-Factory"


def load(shared, name, kind=Conversation, folder=f"{FACTORY}/data", **keys):
    return load_records(DataConfig(dataset=name, dataset_dir=str(shared / folder), **keys), kind)


@pytest.mark.parametrize(("name", "folder"), [
    ("alpaca_zh_demo", f"{FACTORY}/data"), ("identity", f"{FACTORY}/data"),
    ("glaive_toolcall_en_demo", f"{FACTORY}/data"), ("oaast_sft_zh.json", f"{FACTORY}/data_2023"),
    ("examples.json", "data/LLaMA-Efficient-Tuning/data/example_dataset"),
    ("instruction-data.json", "data/LLMs-from-scratch/ch07/01_main-chapter-code"),
    ("alpaca.json", "data/litgpt/tests/data/_fixtures"), ("dolly.json", "data/litgpt/tests/data/_fixtures")])
def test_lists_of_dialogue_are_read_whole(shared, name, folder):
    path = next(path for path in Path(shared / folder).glob("*.json") if path.name.startswith(name.split(".")[0]))
    records = load(shared, name, folder=folder)
    assert len(records) == len(json.loads(path.read_text("utf-8")))
    assert all(record.messages[-1].role == "assistant" for record in records)


def test_alpaca_histories_come_first(shared):
    rows = json.loads((shared / FACTORY / "data_2023/oaast_sft_zh.json").read_text("utf-8"))
    records = load(shared, "oaast_sft_zh.json", folder=f"{FACTORY}/data_2023")
    for row, record in zip(rows, records, strict=True):
        pairs = [text for pair in row["history"] for text in pair]
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        assert [message.content for message in record.messages] == [*pairs, question, row["output"]]


def test_tool_calls_and_tools_are_parsed(shared):
    records = load(shared, "glaive_toolcall_en_demo")
    calls = [message for record in records for message in record.messages if message.tool_calls]
    assert len(calls) > 100 and all(call.tool_calls[0]["function"]["name"] for call in calls)
    assert records[0].tools[0]["name"] == "search_recipes"


def test_openai_parts_and_weights(shared):
    records = load(shared, "v1_sft_demo.jsonl")
    assert len(records) == 250
    assert {tuple(message.weight for message in record.messages) for record in records} == {(0.0, 1.0)}


def test_firefly_rounds(shared):
    rows = [json.loads(line) for line in (shared / "data/Firefly/data/dummy_data.jsonl").open(encoding="utf-8")]
    records = load(shared, "dummy_data.jsonl", folder="data/Firefly/data")
    assert [len(record.messages) for record in records] == [2 * len(row["conversation"]) for row in rows]


def test_moss_rounds_and_plug_ins(shared):
    """Each round is two messages, and two more where a command is used."""
    folder = shared / "data/MOSS/SFT_data/conversations"
    records = load(shared, "conversations", folder="data/MOSS/SFT_data")
    assert len(records) == 66
    for record in records:
        chat = json.loads(Path(record.origin.source).read_text("utf-8"))["chat"].values()
        used = sum(not turn["Commands"].startswith("<|Commands|>: None") for turn in chat if "Commands" in turn)
        assert len(record.messages) == 1 + 2 * len(chat) + 2 * used
        assert not any(mark in m.content for m in record.messages for mark in ("<eoh>", "<eom>", "<eoc>", "<|Human|>"))
    assert folder.is_dir()


@pytest.mark.parametrize(("name", "folder", "number"), [
    ("wiki_demo", f"{FACTORY}/data", 30), ("c4_demo", f"{FACTORY}/data", 300),
    ("dummy_pretrain.jsonl", "data/Firefly/data/pretrain", 23)])
def test_prose_is_read_whole(shared, name, folder, number):
    records = load(shared, name, Text, folder)
    assert len(records) == number and all(record.text.strip() for record in records)
    assert [type(one) for one in load(shared, name, Conversation, folder)] == [Text] * number


def test_json_lines_named_json_are_read(shared):
    records = load(shared, "eval_prompt.json", Text, "data/BELLE/eval", text_column="prompt")
    assert len(records) == 11


def test_sharegpt_lines(shared):
    name = "sharegpt_zh_1K_format.head200.jsonl"
    records = load(shared, name, folder="data/MedicalGPT/data/sft", on_bad_row="skip")
    assert len(records) + records.ledger.total("dropped") == 100
