"""Recipes end to end: rows keep their shape, the ledger tells everything, mistakes are sentences, files are whole."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli.main import main
from danlu.data.clean.recipe import read_recipe
from danlu.data.clean.rows import text_fields
from danlu.data.clean.run import clean


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder: Path, filters: list[Any], rows: list[Any] | None = None, **keys: Any) -> tuple[int, Path]:
    """Write and run a recipe; return the exit code and the output."""
    if rows is not None:
        write_rows(folder / "raw.jsonl", rows)
    recipe = {"input": str(folder / "raw.jsonl"), "output": str(folder / "out.jsonl"), "filters": filters, **keys}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return main(["data", "clean", str(folder / "recipe.yaml")]), folder / "out.jsonl"


SHAPES: list[Any] = [
    {"instruction": "a@b.com?", "input": "", "output": "x@y.org", "id": "u@v.com"},
    {"instruction": "q", "output": "ok", "history": [["m@n.com", "fine"]], "system": "s"},
    {"conversations": [{"from": "human", "value": "i am a@b.com"}, {"from": "gpt", "value": "hi"}], "id": 7},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a@b.com"}]},
                  {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a@b.com"}}]}]},
    [{"role": "user", "content": "a@b.com"}, {"role": "assistant", "content": "hi"}],
    {"conversation": [{"human": "a@b.com", "assistant": "hi"}]},
    {"chat": {"turn_1": {"Human": "a@b.com", "MOSS": "hi", "Commands": "None"}}},
    {"prompt": "p", "chosen": "a@b.com", "rejected": [{"role": "assistant", "content": "c@d.com"}]},
    "mail a@b.com", {"words_of_the_day": "mail a@b.com", "score": 3}]


def test_every_shape_of_row_is_changed_where_its_text_is(tmp_path: Path) -> None:
    """Mail addresses become [EMAIL] in texts; ids and tool calls are no text; everything else is the same."""
    code, out = run(tmp_path, [{"pii": {"kinds": "email"}}], SHAPES)
    assert code == 0
    done = read_rows(out)
    assert [field.text.count("[EMAIL]") for row in done for field in text_fields(row)].count(1) == 12
    assert done[0]["id"] == "u@v.com" and done[3]["messages"][1]["tool_calls"] == SHAPES[3]["messages"][1]["tool_calls"]
    undone = json.dumps(done).replace("[EMAIL]", "@")
    assert undone.count("@") == json.dumps(SHAPES).count("@")
    assert [type(row) for row in done] == [type(row) for row in SHAPES]


def test_ledger_tells_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 rows one is too short, one has nothing left, one is changed, one is kept: each in table and ledger."""
    rows = [{"text": "hi"}, {"text": "<br>"}, {"text": "a <b>bold</b> word"}, {"text": "plain enough"}]
    code, out = run(tmp_path, ["html", {"length": {"min_chars": 4}}], rows)
    said = capsys.readouterr().out
    assert code == 0 and "4 read, 2 kept, 1 changed, 2 dropped" in said
    assert "'a <b>bold</b> word'" in said and "'a bold word'" in said
    assert read_rows(out) == [{"text": "a bold word"}, {"text": "plain enough"}]
    entries = [one for one in read_rows(tmp_path / "_out.ledger.jsonl") if "row" in one]
    assert [(one["row"], one["action"], one["rule"], one["reason"]) for one in entries] == [
        (1, "dropped", "length", "characters below 4"), (2, "dropped", "html", "nothing left of a text"),
        (3, "changed", "html", "HTML")]


def test_ledger_repeats_no_personal_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `pii` writes over is nowhere else: not in its own entry, nor in that of the rule before or after it."""
    rows = [{"text": "\u200bcall 13812345678 or bob@example.com now"}, {"text": "bob@example.com"}]
    code, out = run(tmp_path, ["unicode", "pii", {"length": {"min_chars": 15}}], rows)
    everything = out.read_text() + (tmp_path / "_out.ledger.jsonl").read_text() + capsys.readouterr().out
    assert code == 0 and "[CN_MOBILE]" in everything
    assert "bob@" not in everything and "13812345678" not in everything


def test_rule_for_one_role_and_for_each_text(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "long question here"}, {"from": "gpt", "value": "ok"}]},
            {"conversations": [{"from": "human", "value": "hm"}, {"from": "gpt", "value": "a long answer"}]}]
    _, out = run(tmp_path, [{"length": {"min_chars": 5, "only": "gpt"}}], rows)
    assert read_rows(out) == rows[1:]
    _, out = run(tmp_path, [{"length": {"min_chars": 2, "max_chars": 11, "scope": "field"}}], rows, overwrite=True)
    assert read_rows(out) == rows[1:]
    _, out = run(tmp_path, [{"length": {"min_chars": 14}}], rows, overwrite=True)
    assert read_rows(out) == rows[:1], "16 + 2 visible characters, and 2 + 11"


def test_any_readable_file_becomes_json_lines(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], ["some words", "1"], ["x", "2"]])
    (tmp_path / "b.json").write_text(json.dumps([{"text": "other words"}, {"text": "y"}]))
    code = main(["data", "clean", str(recipe_file(tmp_path)), f"input={tmp_path}/a.csv,{tmp_path}/b.json"])
    assert code == 0
    assert read_rows(tmp_path / "out.jsonl") == [{"text": "some words", "n": "1"}, {"text": "other words"}]


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"input: {folder}/raw.jsonl\noutput: {folder}/out.jsonl\nfilters:\n  - length: {{min_chars: 4}}\n")
    return path


def test_processes_give_the_same_files(tmp_path: Path) -> None:
    """Two spawned processes and this one alone write the same bytes, rows in the order they were read."""
    rows = [{"text": f"row {number} " + "word " * (number % 7), "n": number} for number in range(3000)]
    write_rows(tmp_path / "raw.jsonl", rows)
    path, files = recipe_file(tmp_path), []
    for workers in (1, 2):
        recipe = read_recipe(path, [f"output={tmp_path}/{workers}.jsonl", f"num_workers={workers}",
                                    f"ledger={tmp_path}/{workers}.ledger.jsonl"])
        counts = clean(recipe)
        files.append([(tmp_path / f"{workers}.{ending}").read_bytes() for ending in ("jsonl", "ledger.jsonl")])
        assert counts.total("read") == 3000
    assert files[0] == files[1]
    assert [row["n"] for row in read_rows(tmp_path / "2.jsonl")] == list(range(3000))


@pytest.mark.parametrize(("text", "parts"), [
    ("input: {raw}\noutput: {out}\nfilters:\n  - lenght\n",
     ['unknown filter "lenght"', 'did you mean "length"?', ":3"]),
    ("input: {raw}\noutput: {out}\nfilters:\n  - length: {{min_chars: ten}}\n",
     ["filters[1] length", "min_chars", "'ten'"]),
    ("input: {raw}\noutput: {out}\nfilter: []\n", ['unknown key "filter"', "filters"]),
    ("input: {raw}\noutput: {out}\n", ["a list of rules is needed"]),
    ("input: {raw}\noutput: {out}\nfilters: [length, 3]\n", ["filters[2]", "found 3"]),
    ("output: {out}\nfilters: [length]\n", ["input is needed"]),
    ("input: {raw}x\noutput: {out}\nfilters: [length]\n", ["no file or folder", "did you mean"]),
    ("input: {empty}\noutput: {out}\nfilters: [length]\n", ["no data file in this folder"]),
    ("input: {raw}\noutput: {raw}\nfilters: [length]\n", ["one of the inputs"]),
    ("input: {raw}\noutput: {out}.txt\nfilters: [length]\n", [".jsonl"]),
    ("input: {raw}\noutput: {out}\nnum_workers: 0\nfilters: [length]\n", ["num_workers", ":3"]),
    ("input: {raw}\noutput: {out}\ncolumns: body\nfilters: [length]\n", ["raw.jsonl:1", "expected text in body"]),
    ("input: {broken}\noutput: {out}\nfilters: [length]\n", ["broken.jsonl:2"]),
    ("input: {raw}\noutput: {out}\nfilters:\n  - length\n bad", ["broken YAML"]),
])
def test_mistakes_are_sentences(text: str, parts: list[str], tmp_path: Path,
                                capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the place, the cure, no traceback, and no file but the inputs."""
    write_rows(tmp_path / "raw.jsonl", [{"text": "some words"}])
    (tmp_path / "broken.jsonl").write_text('{"text": "fine words"}\n{"text": \n')
    (tmp_path / "empty").mkdir()
    names = {name: tmp_path / file for name, file in (
        ("raw", "raw.jsonl"), ("out", "out.jsonl"), ("empty", "empty"), ("broken", "broken.jsonl"))}
    (tmp_path / "r.yaml").write_text(text.format(**names))
    before = sorted(path.name for path in tmp_path.iterdir())
    code = main(["data", "clean", str(tmp_path / "r.yaml")])
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    for part in parts:
        assert part in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_output_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ["length"], [{"text": "one"}])
    code, out = run(tmp_path, ["length"], [{"text": "two"}])
    assert code == 2 and "overwrite" in capsys.readouterr().err
    assert read_rows(out) == [{"text": "one"}]


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_text('{"text": "fine words"}\n{"text": \n{"n": 3}\n[]\n"last words"\n')
    code, out = run(tmp_path, ["length"], on_bad_row="skip")
    assert code == 0 and read_rows(out) == [{"text": "fine words"}, "last words"]
    dropped = [one["row"] for one in read_rows(tmp_path / "_out.ledger.jsonl") if one.get("rule") == "(bad row)"
               and "row" in one]
    assert dropped == [2, 3, 4]


def test_compressed_input(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "raw.jsonl.gz", "wt") as file:
        file.write('{"text": "some words"}\n{"text": "x"}\n')
    assert main(["data", "clean", str(recipe_file(tmp_path)), f"input={tmp_path}/raw.jsonl.gz"]) == 0
    assert read_rows(tmp_path / "out.jsonl") == [{"text": "some words"}]


def test_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "clean", "--filters"]) == 0
    listed = capsys.readouterr().out
    assert "gopher_repetition: " in listed and "blocklist: " in listed
    assert main(["data", "clean", "--filters", "pii"]) == 0
    assert "bank_card" in capsys.readouterr().out
    assert main(["data", "clean"]) == 2
