"""Reading on from any row, and counting rows without decoding them, for every type of file."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.core import console
from danlu.data.row_file import RowFile, open_rows
from danlu.data.streaming import row_index
from danlu.data.streaming.row_index import EVERY, index_of

TEXTS = [f"row {n} 天空 {'x' * (n % 50)}" for n in range(3 * EVERY + 7)]
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text"])
        table.writerows([[text + ("\nnext, line" if n % 3 == 0 else "")] for n, text in enumerate(TEXTS)])


def write_columns(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=700)
    else:
        pa.feather.write_feather(table, path, compression="uncompressed")


FILES: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_text(lines(ROWS), "utf-8"),
    "blanks.jsonl": lambda path: path.write_text("\n \t\n" + lines(ROWS).replace(
        "\n", "\r\n\n", 40) + "   " * 50 + "\n" + '{"text": "no newline at the end"}', "utf-8"),
    "marked.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:5]).encode()),
    "rows.txt": lambda path: path.write_text("\n".join(TEXTS), "utf-8"),
    "lines.json": lambda path: path.write_text(lines(ROWS), "utf-8"),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), "utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"a": 1, "data": ROWS, "b": 2}), "utf-8"),
    "one.json": lambda path: path.write_text(json.dumps(ROWS[0], indent=2), "utf-8"),
    "rows.csv": write_csv,
    "rows.parquet": write_columns,
    "rows.arrow": write_columns,
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS).encode())),
}


def made(name: str, folder: Path) -> RowFile:
    path = folder / name
    FILES[name](path)
    return open_rows(path)


@pytest.mark.parametrize("name", FILES)
def test_a_walk_goes_on_from_any_row(name: str, tmp_path: Path) -> None:
    """`scan_from` of a row gives what `scan` gives from that row on: place, number and value."""
    file = made(name, tmp_path)
    rows = [(row.place, row.number, row.value) for row in file.scan()]
    for start in sorted({0, 1, 2, 700, 1024, len(rows) - 1} & set(range(len(rows)))):
        place, number, value = rows[start]
        assert [(row.place, row.number, row.value) for row in file.scan_from(place, number)] == rows[start:], start
        assert file.read(place) == value


@pytest.mark.parametrize("name", FILES)
def test_the_index_counts_what_a_walk_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers and places of every EVERY-th row; pieces of 1000 bytes break lines and characters anywhere."""
    monkeypatch.setattr(row_index, "CHUNK", 1000)
    file = made(name, tmp_path)
    rows = [(row.place, row.number) for row in file.scan()]
    index = index_of(file)
    assert index.count == len(rows)
    assert list(zip(index.places.tolist(), index.numbers.tolist(), strict=True)) == rows[::EVERY]
    assert index.before(len(rows) - 1)[0] == (len(rows) - 1) // EVERY * EVERY


def test_the_index_is_built_once_and_anew_for_an_edited_file(tmp_path: Path) -> None:
    """A second call writes nothing; a damaged cache file, another date or content makes the index anew."""
    file = made("rows.jsonl", tmp_path)
    first = index_of(file)
    kept = list((tmp_path / "cache" / "rows").glob("*.npz"))
    assert len(kept) == 1
    written = kept[0].stat().st_mtime_ns
    assert index_of(file).digest == first.digest and kept[0].stat().st_mtime_ns == written
    index_of(file, anew=True)
    assert kept[0].stat().st_mtime_ns > written
    kept[0].write_bytes(b"damaged")
    assert index_of(file).count == first.count
    os.utime(file.path, (1, 1))
    assert index_of(file).digest == first.digest
    file.path.write_text(lines(ROWS[:9]), "utf-8")
    assert index_of(file).count == 9 and index_of(file).digest != first.digest


def test_a_packed_file_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console._SAID.clear()
    index_of(made("rows.jsonl.gz", tmp_path))
    assert "rows.jsonl.gz is packed" in capsys.readouterr().err
