"""The real public files: every row of every data set of the seeds is read, and counts equal those of plain json."""

import json
from pathlib import Path

import pytest

from danlu.core.errors import CapabilityError, DataError
from danlu.core.records import Conversation, Feedback, Preference, Prompt, Text
from danlu.data.config import DataConfig
from danlu.data.loader import load_records
from danlu.data.registry import find_sources

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


def by_path(shared, path, kind, **keys):
    return load_records(DataConfig(train_file=str(shared / "data" / path), **keys), kind)


def rows_of(shared, path):
    text = (shared / "data" / path).read_text("utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(one) for one in text.splitlines() if one]


def test_declared_and_seen_preferences_are_the_same(shared):
    rows = rows_of(shared, "LLaMA-Factory/data/dpo_en_demo.json")
    declared = load(shared, "dpo_en_demo", Preference)
    seen = by_path(shared, "LLaMA-Factory/data/dpo_en_demo.json", Preference)
    for row, one, other in zip(rows, declared, seen, strict=True):
        assert (one.prompt, one.answers) == (other.prompt, other.answers)
        assert [answer.content for answer in one.answers] == [row["chosen"]["value"], row["rejected"]["value"]]
        assert [turn.content for turn in one.prompt] == [turn["value"] for turn in row["conversations"]]


def test_lists_of_two_outputs_are_preferences(shared):
    """Rows whose two answers are one and the same are bad, and the only ones."""
    rows = rows_of(shared, "LLaMA-Factory/data_2023/oaast_rm_zh.json")
    alike = [number for number, row in enumerate(rows, 1)
             if len({text.strip() for text in row["output"]}) < len(row["output"])]
    records = by_path(shared, "LLaMA-Factory/data_2023/oaast_rm_zh.json", Preference, on_bad_row="skip")
    assert len(records) == len(rows) - len(alike)
    assert [entry.row for entry in records.ledger.entries] == alike
    for record in records:
        row = rows[record.origin.row - 1]
        assert [answer.content for answer in record.answers] == row["output"]
        assert record.prompt[-1].content.startswith(row["instruction"])


def test_dialogues_that_share_their_prompt_are_preferences(shared):
    records = by_path(shared, "Firefly/data/dummy_dpo.jsonl", Preference, on_bad_row="skip")
    rows = rows_of(shared, "Firefly/data/dummy_dpo.jsonl")
    assert len(records) + records.ledger.total("dropped") == len(rows)
    for record in records:
        row = rows[record.origin.row - 1]
        assert [turn.content for turn in record.prompt] == [turn["content"] for turn in row["chosen"][:-1]]
        assert [one.content for one in record.answers] == [row[name][-1]["content"] for name in ("chosen", "rejected")]
    assert len(records) >= 0.7 * len(rows)


def test_preferred_tool_calls(shared):
    records = by_path(shared, "MedicalGPT/data/reward/toolcall_dpo_zh_demo.jsonl", Preference)
    assert len(records) == 6 and all(record.tools for record in records)


def test_verdicts(shared):
    rows = rows_of(shared, "LLaMA-Factory/data/kto_en_demo.json")
    declared = load(shared, "kto_en_demo", Feedback)
    seen = by_path(shared, "LLaMA-Factory/data/kto_en_demo.json", Feedback)
    assert [one.desirable for one in declared] == [row["label"] for row in rows] == [one.desirable for one in seen]
    assert [one.messages for one in declared] == [one.messages for one in seen]


@pytest.mark.parametrize(("path", "column", "extra"), [
    ("MOSS/SFT_data/user_prompts/harmless_prompts.jsonl", "user_prompt", set()),
    ("gsm8k/test.jsonl", "question", {"answer"}), ("MedicalGPT/data/grpo/sample.jsonl", "question", {"answer"}),
    ("LLaMA-Factory/data/alpaca_zh_demo.json", "instruction", {"output"}),
    ("BELLE/eval/eval_prompt.json", "prompt", {"class"})])
def test_prompts(shared, path, column, extra):
    rows = rows_of(shared, path)
    records = by_path(shared, path, Prompt)
    assert len(records) == len(rows)
    for row, record in zip(rows, records, strict=True):
        assert record.messages[-1].content.startswith(row[column]) and extra <= set(record.extra)


def test_prompts_of_messages_keep_what_the_reward_needs(shared):
    records = by_path(shared, "xtuner/tests/resource/gsm8k_train_example_data.jsonl", Prompt)
    assert len(records) == 200 and all(record.extra["reward_model"]["ground_truth"] for record in records)


def test_packed_real_data(shared):
    records = by_path(shared, "human-eval/HumanEval.jsonl.gz", Prompt)
    assert len(records) == len({record.extra["task_id"] for record in records}) > 50


@pytest.mark.parametrize(("path", "number"), [
    ("xtuner/tests/resource/openai_sft.jsonl", 64), ("Chinese-Vicuna/sample/chat/data_sample.jsonl", 3),
    ("axolotl/tests/fixtures/conversation.json", 1)])
def test_other_layouts_of_dialogue(shared, path, number):
    assert len(by_path(shared, path, Conversation)) == number


def test_titled_prose(shared):
    folder = "LLaMA-Efficient-Tuning/data/pretrain_data"
    assert len(by_path(shared, folder, Text, text_column="content")) == 3


def test_every_entry_of_the_real_registry_is_understood(shared):
    """Each entry names a source, or says in words why it cannot be read: pictures, sound, or a script."""
    info = json.loads((shared / FACTORY / "data/dataset_info.json").read_text("utf-8"))
    read, refused = 0, []
    for name, entry in info.items():
        config = DataConfig(dataset=name, dataset_dir=str(shared / FACTORY / "data"))
        try:
            source, = find_sources(config, "train")
        except (CapabilityError, DataError) as error:
            refused.append((name, str(error)))
            continue
        read += 1
        assert source.ranking == entry.get("ranking", False)
    assert read >= 80
    assert all(any(word in text for word in ("not supported", "no file or folder", "script")) for _, text in refused)
