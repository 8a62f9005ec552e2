"""Data files: what is walked through is what is read again, and broken files name file, line and column."""

import gzip
import json
import multiprocessing
import random
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest

from danlu.core.errors import DataError
from danlu.data.readers.json_file import JsonFile
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


def pack(path, suffix):
    """Return a packed copy of a file."""
    packed = path.with_name(path.name + suffix)
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.OSFile(str(packed), "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(path.read_bytes())
    return packed


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", [*WRITERS, "rows.tsv", "rows.txt"])
def test_packed_files_give_the_same_rows_in_any_order(tmp_path, name, suffix):
    path = tmp_path / name
    if name in WRITERS:
        WRITERS[name](path)
    else:
        path.write_text("text\none\ntwo\n")
    packed = pack(path, suffix)
    wanted = [row.value for row in open_rows(path).scan()]
    rows = open_rows(packed)
    found = list(rows.scan())
    assert [row.value for row in found] == wanted and len(wanted) >= 2
    for order in (found, found[::-1], found[::-1], found[::-1], found[::-1], found[::-1]):
        assert [rows.read(row.place) for row in order] == [row.value for row in order]


def test_packed_parts_one_after_the_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert [row.value for row in open_rows(path).scan()] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_packed_file_says_how_far_it_goes(tmp_path, suffix):
    """Noise does not pack, so half of the packed bytes are about half of the lines."""
    path = tmp_path / "a.jsonl"
    noise = random.Random(1)
    path.write_text("".join(json.dumps({"text": noise.randbytes(300).hex()}) + "\n" for _ in range(4000)))
    packed = pack(path, suffix)
    packed.write_bytes(packed.read_bytes()[:packed.stat().st_size // 2])
    rows = open_rows(packed).scan()
    seen = 0
    with pytest.raises(DataError, match="truncated or damaged (gzip|zstd) file: it breaks off after") as caught:
        for row in rows:
            assert row.error is None
            seen += 1
    line = int(caught.value.where.removeprefix(f"{packed}:"))
    assert 1000 < line < 3000 and 0 <= line - seen <= 1


def test_a_small_truncated_gz_gives_the_rows_before_the_damage(tmp_path):
    """Less than one read of it is left, and these rows are rows all the same."""
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress("".join(f'{{"a": {n}}}\n' for n in range(2000)).encode())
    path.write_bytes(packed[:len(packed) // 2])
    rows = open_rows(path).scan()
    assert [next(rows).value["a"] for _ in range(300)] == list(range(300))


def test_a_packed_name_over_other_bytes_is_said(tmp_path):
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_text('{"a": 1}\n')
        with pytest.raises(DataError, match="not (gzip|zstd) data, as the name says: it begins with b'{\"") as caught:
            list(open_rows(path).scan())
        assert caught.value.where == f"{path}:1" and f"take {suffix} off its name" in caught.value.fix


def test_a_line_without_end_is_one_error_and_the_walk_goes_on(tmp_path):
    """100 MB in one line: the row is refused, memory stays below the line's size, and the next row is read."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"a": 3}\n')
    rows = list(open_rows(path).scan())
    assert [(row.number, row.value) for row in rows] == [(1, {"a": 1}), (2, None), (3, {"a": 3})]
    assert str(rows[1].error).startswith(f"{path}:2: the line is longer than 64 MiB")
    assert open_rows(path).read(rows[2].place) == {"a": 3}
    listed = path.rename(tmp_path / "a.json")
    listed.write_bytes(b'[{"a": 1},\n' + listed.read_bytes()[9:])
    with pytest.raises(DataError, match=re.escape(f"{listed}:2: the row is longer than 64 MiB")):
        list(open_rows(listed).scan())


def test_a_list_is_read_in_pieces_at_every_boundary(tmp_path, monkeypatch):
    """Pieces of 1, 2, 3, ... bytes cut every character, number and escape somewhere; rows, places and lines stay."""
    path = tmp_path / "a.json"
    values = [{"天": "空 🌞 \\u0041\"]"}, 12345, [1, [2]], "é\n", None, -1.5e3]
    listed = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    path.write_text(f'{{"note": [0],\n "data": [\n{listed}]}}')
    for size in range(1, 24):
        monkeypatch.setattr("danlu.data.readers.json_file.WALK", size)
        monkeypatch.setattr("danlu.data.readers.json_file.GLANCE", size)
        rows = list(JsonFile(path).scan())
        assert [(row.value, row.line) for row in rows] == [(value, line) for line, value in enumerate(values, 3)]
        assert [JsonFile(path).read(row.place) for row in rows[::-1]] == values[::-1]


def test_memory_of_a_long_list_is_bounded(tmp_path):
    """A list of 80 MB is walked through within 40 MB of Python memory, as tracemalloc counts it."""
    path = tmp_path / "a.json"
    with path.open("w") as file:
        row = json.dumps({"text": "x" * 10_000})
        file.write("[" + ",".join([row] * 8000) + "]")
    tracemalloc.start()
    rows = sum(1 for _ in open_rows(path).scan())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 8000 and peak < 40e6


def test_two_lists_in_one_object_and_lists_left_out_are_said(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text('{"train": [1], "data": [2]}')
    with pytest.raises(DataError, match='two lists of rows in one object, "train" and "data"'):
        list(open_rows(path).scan())
    path.write_text('{"train": [1], "test": [2]}')
    assert [row.value for row in open_rows(path).scan()] == [1]
    assert 'the rows are the list "train"; test is not read' in capsys.readouterr().err


def test_json_lines_named_json_may_start_with_blank_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [(row.number, row.value) for row in open_rows(path).scan()] == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_forked_process_reads_a_packed_file_by_itself(tmp_path):
    """Parent and child take turns on one file; a shared position would mix their rows up."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"a": {n}}}\n' for n in range(50_000)))
    rows = open_rows(pack(path, ".gz"))
    places = [row.place for row in rows.scan()]
    assert rows.read(places[10]) == {"a": 10}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        inside = pool.map_async(rows.read, places[::500])
        outside = [rows.read(place)["a"] for place in places[::500]]
        assert [row["a"] for row in inside.get()] == outside == list(range(0, 50_000, 500))
