"""Data files: what is walked through is what is read again, and broken files name file, line and column."""

import json
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from danlu.core.errors import DataError
from danlu.data.row_file import open_rows

ROWS = [{"text": "one, \"two\""}, {"text": "three\nfour"}, {"text": "天空 🌞"}]


def write_arrow(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_csv(path):
    cells = ['"' + row["text"].replace('"', '""') + '"' for row in ROWS]
    path.write_text("\n".join(["text", *cells]) + "\n", "utf-8")


WRITERS = {
    "list.json": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), "utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}), "utf-8"),
    "lines.json": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8"),
    "bom.json": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False), "utf-8-sig"),
    "rows.jsonl": lambda path: path.write_text(
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n", "utf-8-sig"),
    "rows.csv": write_csv,
    "rows.parquet": lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2),
    "rows.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_gives_the_rows_and_gives_them_again_in_any_order(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    found = list(open_rows(path).scan())
    assert [row.value for row in found] == ROWS
    again = open_rows(path)
    assert [again.read(row.place) for row in reversed(found)] == ROWS[::-1]


def test_lines_are_numbered_by_line_and_list_elements_by_element(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.number for row in open_rows(lines).scan()] == [1, 3]
    listed = tmp_path / "a.json"
    listed.write_text('[\n {"a": 1},\n {"a":\n 2}, {"a": 3}]')
    assert [(row.number, row.line) for row in open_rows(listed).scan()] == [(1, 2), (2, 3), (3, 4)]


def test_text_files_hold_one_record_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\n  \n二\n".encode())
    assert [(row.number, row.value) for row in open_rows(path).scan()] == [(1, {"text": "one"}), (4, {"text": "二"})]


def test_a_single_object_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"chat": {"turn_1": {}}}, indent=2))
    assert [row.value for row in open_rows(path).scan()] == [{"chat": {"turn_1": {}}}]


@pytest.mark.parametrize(("name", "content", "where"), [
    ("a.jsonl", '{"a": 1}\n{"a": tru}\n', ":2:7"),
    ("a.json", '[{"a": 1},\n {"a" 2}]', ":2:7"),
    ("a.json", '[{"a": 1}\n {"a": 2}]', ":2:2"),
    ("a.json", '[{"a": 1}', ":1:10"),
    ("a.json", '{"a": 1', ":1:8"),
    ("a.json", '[{"a": 1}]\n[{"a": 2}]\n', ":2:1")])
def test_broken_json_names_line_and_column(tmp_path, name, content, where):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(f"{path}{where}: broken JSON")):
        for row in open_rows(path).scan():
            if row.error:
                raise row.error


def test_a_broken_line_does_not_end_the_walk(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a":\n{"a": 3}\n')
    assert [row.error is None for row in open_rows(path).scan()] == [True, False, True]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_wrong_encoding_names_line_and_byte(tmp_path, name):
    """The second line starts at byte 8; `天` in GB18030 is cc ec, and cc is no UTF-8 there: byte 8 + 6."""
    path = tmp_path / name
    path.write_bytes(b'[" ab"]\n["abc"' + "天".encode("gb18030") + b"]\n")
    with pytest.raises(DataError, match="not UTF-8: byte 14 of the file") as caught:
        for row in open_rows(path).scan():
            if row.error:
                raise row.error
    assert caught.value.where == f"{path}:2"
    assert "gb18030" in caught.value.fix


def test_ragged_csv_rows_are_errors_of_their_own(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('q,a\n1,2\n3\n"x\ny",5\n')
    rows = list(open_rows(path).scan())
    assert [(row.number, row.value) for row in rows] == [
        (2, {"q": "1", "a": "2"}), (3, None), (4, {"q": "x\ny", "a": "5"})]
    assert "1 cells where the header has 2" in str(rows[1].error)
    assert open_rows(path).read(rows[2].place) == {"q": "x\ny", "a": "5"}


@pytest.mark.parametrize(("content", "message"), [
    ('q,a\n1,"2\n', "broken CSV"), ("q,q\n1,2\n", "the header names q twice")])
def test_broken_csv_is_said(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        list(open_rows(path).scan())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_columnar_file_is_said(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a table")
    with pytest.raises(DataError, match="not a whole"):
        list(open_rows(path).scan())
