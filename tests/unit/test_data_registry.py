"""dataset_info.json and direct paths: every key means what it says, and what is missing is named with a way out."""

import hashlib
import json
import sys

import datasets
import pytest

from danlu.core.errors import CapabilityError, ConfigError, DataError
from danlu.core.records import Conversation, Preference, Text
from danlu.data.config import DataConfig
from danlu.data.loader import load_records
from danlu.data.registry import find_sources

ALPACA = [{"instruction": f"q{n}", "input": "i", "output": f"a{n}"} for n in range(5)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ALPACA))
    (tmp_path / "more").mkdir()
    for name in ("b", "a"):
        (tmp_path / "more" / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    return tmp_path


def declare(folder, **entries):
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return lambda **keys: DataConfig(dataset_dir=str(folder), **keys)


def test_names_files_and_folders_are_found(folder):
    config = declare(folder, mine={"file_name": "rows.json"}, many={"file_name": "more"})
    assert len(load_records(config(dataset="mine"), Conversation)) == 5
    assert [record.text for record in load_records(config(dataset="many"), Text)] == ["a", "b"]
    assert len(load_records(config(dataset="rows.json"), Conversation)) == 5
    assert len(load_records(config(dataset=str(folder / "rows.json")), Conversation)) == 5
    assert len(load_records(config(train_file=str(folder / "rows.json")), Conversation)) == 5
    assert [record.text for record in load_records(config(dataset="more,rows.json"), Text)] == [
        "a", "b", *(f"q{n}\ni\na{n}" for n in range(5))]


def test_unlisted_columns_are_absent(folder):
    config = declare(folder, mine={"file_name": "rows.json", "columns": {
        "prompt": "instruction", "query": "", "response": "output"}})
    assert load_records(config(dataset="mine"), Conversation)[0].messages[0].content == "q0"


@pytest.mark.parametrize("tags", [{}, {"tags": {"user_tag": "human", "assistant_tag": "gpt"}}])
def test_old_tags_among_the_columns_still_work(folder, tags):
    (folder / "talk.jsonl").write_text(json.dumps({"turns": [{"r": "human", "c": "q"}, {"r": "gpt", "c": "a"}]}))
    config = declare(folder, mine={
        "file_name": "talk.jsonl", "formatting": "sharegpt",
        "columns": {"messages": "turns", "role": "r", "content": "c"}, **tags})
    assert [message.content for message in load_records(config(dataset="mine"), Conversation)[0].messages] == ["q", "a"]


def test_samples_are_counted_and_seeded(folder):
    config = declare(folder, few={"file_name": "rows.json", "num_samples": 3},
                     many={"file_name": "rows.json", "num_samples": 12})
    def asked(name, **keys):
        seed = keys.pop("seed", 1)
        return [r.messages[0].content[1] for r in load_records(config(dataset=name, **keys), Conversation, seed=seed)]

    assert asked("rows.json", max_samples=2) == ["0", "1"]
    assert len(set(asked("few"))) == 3
    assert asked("few") == asked("few")
    assert len(asked("many")) == 12 and set(asked("many")) == set("01234")
    assert any(asked("few", seed=seed) != asked("few") for seed in range(2, 6))


@pytest.mark.parametrize(("entry", "error", "message"), [
    ({"file_name": "rowz.json"}, DataError, "no file or folder .*rowz.json\n  fix: did you mean .*rows.json"),
    ({"file_nam": "x"}, DataError, 'unknown key "file_nam"\n  fix: did you mean "file_name"'),
    ({"file_name": "rows.json", "columns": {"promt": "x"}}, DataError, 'columns: unknown key "promt"'),
    ({"file_name": "rows.json", "formatting": "alpacca"}, ConfigError, 'unknown formatting "alpacca"'),
    ({"file_name": "rows.json", "ranking": True}, ConfigError, "declared as preference data"),
    ({"script_url": "x"}, CapabilityError, "script_url: loading scripts"),
    ({"om_hub_url": "a/b"}, CapabilityError, "om_hub_url a/b"),
    ({"file_name": "rows.json", "ranking": "yes"}, DataError, "ranking is 'yes'"),
    ({"file_name": "rows.json", "num_samples": "9"}, DataError, "num_samples is '9'"),
    ({"file_name": ["rows.json"]}, DataError, "file_name is"),
    ({"file_name": "rows.json", "columns": {"kto_tag": "good"}}, ConfigError, "declared as answers with verdicts"),
    ({"cloud_file_name": "s3://x"}, CapabilityError, "cloud_file_name"),
    ({"file_name": "rows.json", "columns": {"images": "x"}}, CapabilityError, "columns of pictures"),
    ({}, DataError, "names no data"), ([], DataError, "expected an object")])
def test_a_wrong_entry_is_named(folder, entry, error, message):
    config = declare(folder, mine=entry)
    with pytest.raises(error, match=message) as caught:
        load_records(config(dataset="mine"), Conversation)
    assert "mine" in str(caught.value)


def test_modelscope_ids_need_its_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    both = {"hf_hub_url": str(folder / "more"), "ms_hub_url": "a/b"}
    config = declare(folder, only={"ms_hub_url": "a/b"}, both=both)
    with pytest.raises(CapabilityError, match=r"a/b is a data set of ModelScope.*\n  fix: pip install"):
        load_records(config(dataset="only"), Text)
    assert len(load_records(config(dataset="both"), Text)) == 2
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    with pytest.raises(CapabilityError, match="ModelScope"):
        load_records(config(dataset="both"), Text)


def test_a_registry_on_the_hub_is_asked_for_and_its_absence_said(folder):
    with pytest.raises(DataError, match="someone/sets: the hub gives no file dataset_info.json"):
        load_records(DataConfig(dataset="mine", dataset_dir="REMOTE:someone/sets"), Text)


def test_a_file_that_is_not_the_one_meant_is_warned_of(folder, capsys):
    right = hashlib.sha1((folder / "rows.json").read_bytes()).hexdigest()
    config = declare(folder, right={"file_name": "rows.json", "file_sha1": right},
                     wrong={"file_name": "rows.json", "file_sha1": "0" * 40})
    assert len(load_records(config(dataset="right"), Conversation)) == 5
    assert "file_sha1" not in capsys.readouterr().err
    assert len(load_records(config(dataset="wrong"), Conversation)) == 5
    assert "rows.json is not the file that file_sha1" in capsys.readouterr().err


def test_a_folder_with_its_registry_or_saved_by_datasets_is_read(folder, tmp_path_factory):
    declare(folder / "more", mine={"file_name": "a.jsonl"})
    assert len(load_records(DataConfig(train_file=str(folder / "more")), Text)) == 2
    saved = tmp_path_factory.mktemp("saved")
    datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "one"}]),
                         test=datasets.Dataset.from_list([{"text": "two"}, {"text": "three"}])).save_to_disk(saved)
    assert [record.text for record in load_records(DataConfig(train_file=str(saved)), Text)] == ["one"]
    config = declare(folder, mine={"file_name": str(saved), "split": "test"})
    assert [record.text for record in load_records(config(dataset="mine"), Text)] == ["two", "three"]
    with pytest.raises(DataError, match="no file or folder .*validation"):
        load_records(config(dataset="mine", split="validation"), Text)


def test_unknown_names_suggest_the_closest_and_say_where_was_looked(folder):
    config = declare(folder, alpaca_zh={"file_name": "rows.json"}, wiki={"file_name": "rows.json"})
    with pytest.raises(DataError, match='unknown data set "alpaca_hz"') as caught:
        find_sources(config(dataset="alpaca_hz"), "train")
    assert "did you mean alpaca_zh?" in caught.value.fix and str(folder / "dataset_info.json") in caught.value.fix


def test_without_a_registry_the_place_it_was_looked_for_is_said(tmp_path):
    with pytest.raises(DataError) as caught:
        find_sources(DataConfig(dataset="x", dataset_dir=str(tmp_path)), "train")
    assert f"{tmp_path / 'dataset_info.json'} (not found; set dataset_dir)" in caught.value.fix


def test_no_data_no_train_file_wrong_type_and_mixed_folders_are_said(tmp_path):
    with pytest.raises(ConfigError, match="no train data is named"):
        load_records(DataConfig(), Conversation)
    with pytest.raises(DataError, match="no file or folder .*missing.jsonl"):
        load_records(DataConfig(train_file=str(tmp_path / "missing.jsonl")), Conversation)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match="dataset: no file or folder .*rowz.jsonl\n  fix: did you mean .*rows.jsonl"):
        load_records(DataConfig(dataset=str(tmp_path / "rowz.jsonl")), Conversation)
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match='cannot read files of type ".docx"'):
        load_records(DataConfig(train_file=str(tmp_path / "a.docx")), Conversation)
    with pytest.raises(DataError, match="no data file in this folder"):
        load_records(DataConfig(train_file=str(tmp_path)), Conversation)
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="files of several types in one folder: json, jsonl"):
        load_records(DataConfig(train_file=str(tmp_path)), Conversation)


def test_preference_stages_refuse_sets_that_are_not_declared_so(folder):
    config = declare(folder, mine={"file_name": "rows.json", "formatting": "alpaca"})
    with pytest.raises(ConfigError, match="not declared as preference data"):
        load_records(config(dataset="mine"), Preference)


def test_an_evaluation_set_is_named_by_its_own_keys(folder):
    config = declare(folder, mine={"file_name": "rows.json"})
    assert len(load_records(config(eval_dataset="mine"), Conversation, which="eval")) == 5
    assert len(load_records(DataConfig(eval_file=str(folder / "more")), Text, which="eval")) == 2


def test_a_folder_is_a_hub_set_when_the_user_says_so(folder):
    config = declare(folder, mine={"hf_hub_url": str(folder / "more")})
    assert [record.text for record in load_records(config(dataset="mine"), Text)] == ["a", "b"]
    broken = declare(folder, mine={"hf_hub_url": str(folder / "nothing")})
    with pytest.raises(DataError, match="the hub gives no data set"):
        len(load_records(broken(dataset="mine"), Text))
