"""Loading: what happens to bad rows and empty files, the ledger, the validation split, mixed sets."""

import json
import subprocess
import sys

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.core.records import Conversation, Origin, Text
from danlu.data.config import DataConfig
from danlu.data.ledger import Ledger
from danlu.data.loader import load_records, split_validation


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def good(number):
    return {"instruction": f"q{number}", "output": f"a{number}"}


ROWS = [good(1), {"instruction": "q", "output": 3}, '{"instruction": ', good(2)]


def test_the_first_bad_row_stops_the_run_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError) as caught:
        len(load_records(DataConfig(train_file=path), Conversation))
    assert caught.value.where == f"{path}:2"
    assert caught.value.what == "/output: found 3 (number), expected a string"
    assert "on_bad_row: skip" in caught.value.fix


def test_a_bad_element_of_a_list_names_row_and_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([good(1), {"instruction": "q", "output": 3}], indent=1))
    with pytest.raises(DataError) as caught:
        len(load_records(DataConfig(train_file=str(path)), Conversation))
    assert caught.value.where == f"{path}:6" and caught.value.what.startswith("row 2, /output: found 3")


def test_skipped_rows_are_in_the_ledger(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    records = load_records(DataConfig(train_file=path, on_bad_row="skip"), Conversation)
    assert [record.origin.row for record in records] == [1, 4]
    assert records.ledger.counts[path] == {"read": 4, "dropped": 2}
    written = [json.loads(line) for line in records.ledger.write(tmp_path / "out").read_text("utf-8").splitlines()]
    assert written[0] == {"source": path, "read": 4, "dropped": 2}
    assert [(line["row"], line["action"], line["reason"]) for line in written[1:]] == [
        (2, "dropped", "bad row"), (3, "dropped", "bad row")]
    assert "found 3 (number)" in written[1]["detail"] and "broken JSON" in written[2]["detail"]
    assert records.ledger.lines() == [f"data {path}: 4 read, 2 dropped", f"  2 dropped: bad row (first: {path}:2)"]


def test_a_ledger_survives_json_and_merges():
    ledger = Ledger()
    ledger.count("a", "read", 3)
    merged = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    merged.merge(ledger)
    assert merged.counts["a"]["read"] == 6 == merged.total("read")


def test_a_row_cut_and_then_dropped_is_counted_once():
    """Row 1 is cut twice, row 2 cut and dropped, row 3 dropped: one cut, two dropped, all five reasons kept."""
    ledger = Ledger()
    for row, acts in ((1, "cc"), (2, "cd"), (3, "d")):
        for act in acts:
            (ledger.cut if act == "c" else ledger.drop)(Origin("a", row), "long")
    assert ledger.lines()[0] == "data a: 1 cut, 2 dropped" and len(ledger.entries) == 5


def test_empty_documents_are_left_out_and_listed(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    records = load_records(DataConfig(train_file=path), Text)
    assert [record.text for record in records] == ["one", "two"]
    assert records.ledger.reasons() == {"dropped: empty text": 1}


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_data_set_is_an_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match="no rows: the data set is empty"):
        len(load_records(DataConfig(train_file=str(path)), Conversation))


def test_rows_of_no_known_format_say_what_is_there_and_how_to_declare(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"alpha": "x", "beta": "y"}])
    with pytest.raises(DataError, match="no known data format has the keys alpha, beta") as caught:
        len(load_records(DataConfig(train_file=path), Conversation))
    assert caught.value.where == f"{path}:1" and "dataset_info.json" in caught.value.fix


def test_a_text_column_goes_to_fine_tuning_as_it_is(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"body": "prose", "title": "t"}])
    config = DataConfig(train_file=path, text_column="body")
    assert [record.text for record in load_records(config, Conversation)] == ["prose"]


def test_sets_of_different_formats_are_mixed(tmp_path):
    first = write(tmp_path / "a.jsonl", [good(1)])
    second = write(tmp_path / "b.jsonl", [{"conversation": [{"human": "q2", "assistant": "a2"}]}])
    third = write(tmp_path / "c.txt", ["prose"])
    records = load_records(DataConfig(dataset=f"{first},{second},{third}"), Conversation)
    assert [type(record) for record in records] == [Conversation, Conversation, Text]
    assert records[-1].origin.source == third


def test_interleaving_is_seeded(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(20)]) for name in "ab"]
    config = DataConfig(dataset=",".join(paths), mix_strategy="interleave_once", interleave_probs="0.7,0.3")
    def order(seed):
        return [record.text for record in load_records(config, Text, seed=seed)]

    assert sorted(order(1)) == sorted(f"{name}{n}" for name in "ab" for n in range(20))
    assert order(1) == order(1) != order(2)
    assert [text for text in order(1) if text[0] == "a"] == [f"a{n}" for n in range(20)]


@pytest.mark.parametrize(("size", "held_out"), [(0.2, 2), (3, 3), (0.01, 1)])
def test_the_validation_split_is_a_seeded_partition(tmp_path, size, held_out):
    path = write(tmp_path / "a.jsonl", [good(n) for n in range(10)])
    def halves(seed):
        parts = split_validation(load_records(DataConfig(train_file=path), Conversation), size, seed)
        return [[record.origin.row for record in part] for part in parts]

    train, validation = halves(1)
    assert len(validation) == held_out and sorted(train + validation) == list(range(1, 11))
    assert halves(1) == [train, validation]
    assert any(halves(seed) != [train, validation] for seed in range(2, 6))


def test_a_split_that_leaves_nothing_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [good(1), good(2)])
    train, _ = split_validation(load_records(DataConfig(train_file=path), Conversation), 2, 1)
    with pytest.raises(ConfigError, match="val_size 2 leaves nothing of 2 records"):
        len(train)


def test_a_declared_column_that_no_row_has_is_warned_of(tmp_path, capsys):
    write(tmp_path / "a.jsonl", [good(1)])
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "instruction", "response": "output", "system": "systm"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    assert len(load_records(DataConfig(dataset="mine", dataset_dir=str(tmp_path)), Conversation)) == 1
    assert 'names the column "systm", which no row has' in capsys.readouterr().err


def test_preference_rows_are_recognised_and_sent_elsewhere(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match="holds a preference pair"):
        len(load_records(DataConfig(train_file=path), Conversation))


def test_loading_needs_neither_torch_nor_transformers(tmp_path):
    """Checking data is quick and light: a process of its own shows which modules it has imported."""
    path = write(tmp_path / "a.jsonl", [good(1)])
    code = ("import sys; from danlu.data.config import DataConfig; from danlu.data.loader import load_records;"
            "from danlu.core.records import Conversation;"
            f"assert len(load_records(DataConfig(train_file={path!r}), Conversation)) == 1;"
            "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_set_whose_rows_are_all_bad_says_why(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "q", "output": ""}] * 3)
    with pytest.raises(DataError, match="no usable row: 3 dropped: bad row"):
        len(load_records(DataConfig(train_file=path, on_bad_row="skip"), Conversation))


@pytest.mark.parametrize("row", [{"prompt": "q", "chosen": "a", "rejected": "b"},
                                 {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}])
def test_compared_answers_where_single_ones_are_wanted_name_the_stages(tmp_path, row):
    with pytest.raises(DataError) as caught:
        len(load_records(DataConfig(train_file=write(tmp_path / "a.jsonl", [row])), Conversation))
    assert caught.value.fix == "set stage: rm or stage: dpo, or give rows with one answer each"
