"""danlu data lint: every planted fault is found once, at its place; good data has none; repair loses nothing."""

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from danlu.data.config import DataConfig
from danlu.data.lint.check import Lint
from danlu.data.lint.finding import CODES, Report
from danlu.data.lint.near import similarity
from danlu.data.lint.repair import write_repaired
from danlu.data.lint.texts import misread
from danlu.data.registry import find_sources

Run = Callable[..., int]


def talk(*texts: Any, first: str = "human") -> dict[str, Any]:
    other = {"human": "gpt", "gpt": "human"}
    names = [first if index % 2 == 0 else other[first] for index in range(len(texts))]
    return {"conversations": [{"from": name, "value": text} for name, text in zip(names, texts, strict=True)]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
                            for row in rows), encoding="utf-8")
    return path


def lint(path: Path, *, held_out: Path | None = None, **settings: Any) -> Report:
    config = DataConfig(dataset=(str(path),), eval_dataset=(str(held_out),) if held_out else ())
    return Lint(**settings).run(find_sources(config, "train"), find_sources(config, "eval"))


def found(report: Report) -> list[tuple[str, int | None, int | None, str]]:
    return [(one.code, one.line, one.column, one.pointer) for one in report.sorted()]


GOOD = talk("why is the sky so very blue today", "because of Rayleigh scattering in the air")


@pytest.mark.parametrize(("row", "code", "pointer"), [
    (talk("a", "b", "open"), "no-final-answer", "/conversations/2/value"),
    (talk("hello", "a", "b", first="gpt"), "broken-alternation", "/conversations/0/value"),
    (talk("a", ""), "empty-turn", "/conversations/1/value"),
    (talk("a", 42), "wrong-type", "/conversations/1/value"),
    (talk("a", None), "wrong-type", "/conversations/1/value"),
    ({"conversations": []}, "no-turns", "/conversations"),
    ({"conversations": [{"from": "robot", "value": "x"}, {"from": "gpt", "value": "y"}]}, "unknown-role",
     "/conversations/0/from"),
    ({"conversations": [{"value": "x"}, {"from": "gpt", "value": "y"}]}, "missing-key", "/conversations/0"),
    ({"instruction": "a", "output": "b"}, "mixed-formats", ""),
    (talk("a", "I am {{name}}"), "placeholder", "/conversations/1/value"),
    (talk("a", "done<|im_end|>"), "control-token", "/conversations/1/value"),
    (talk("a", "[INST] b [/INST]"), "control-token", "/conversations/1/value"),
    (talk("a", "bad \ufffd letter"), "replacement-character", "/conversations/1/value"),
    (talk("a", "nul \x00"), "control-character", "/conversations/1/value"),
])
def test_each_fault_is_found_at_its_pointer(tmp_path: Path, row: Any, code: str, pointer: str) -> None:
    report = lint(write(tmp_path / "a.jsonl", [GOOD, row]))
    assert [(one.code, one.line, one.pointer) for one in report.findings] == [(code, 2, pointer)]


def test_column_counts_characters_to_the_value(tmp_path: Path) -> None:
    """The column is that of the value's first character, counted in letters and not in bytes."""
    row = json.dumps(talk("天空", "", first="human"), ensure_ascii=False)
    report = lint(write(tmp_path / "a.jsonl", [GOOD, row]))
    assert found(report) == [("empty-turn", 2, row.rindex('""') + 1, "/conversations/1/value")]


def test_places_in_a_list_over_several_lines(tmp_path: Path) -> None:
    """Row 2 begins on line 3 at column 2; its output stands on line 4 behind four blanks and `"output": `."""
    path = tmp_path / "a.json"
    path.write_text('[\n {"instruction": "a", "output": "b"},\n {"instruction": "c",\n    "output": 5}, '
                    '{"instruction": "", "output": "d"}\n]', encoding="utf-8")
    assert found(lint(path)) == [
        ("wrong-type", 4, 15, "/output"), ("empty-turn", 4, 19 + len('{"instruction": '), "/instruction")]


def test_every_broken_line_is_found_not_only_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, '{"conversations": [', GOOD | {"id": 2}, "not json", '{"a": 1,}'])
    with path.open("ab") as file:
        file.write(b'{"x": "\xb0\xb2"}\n')
    report = lint(path)
    broken = [(one.code, one.line) for one in report.sorted() if one.severity == "error"]
    assert broken == [("broken-json", 2), ("broken-json", 4), ("broken-json", 5), ("not-utf8", 6)]
    assert report.counts["duplicate"] == 1, "an id does not make a row new"


def test_ragged_csv_truncated_gz_and_empty_file(tmp_path: Path) -> None:
    ragged = tmp_path / "a.csv"
    ragged.write_text("instruction,output\na,b\nc,d,e\nf,g\n", encoding="utf-8")
    assert [(one.code, one.line) for one in lint(ragged).findings] == [("ragged-csv", 3)]
    packed = tmp_path / "b.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(talk(f"question {n}", f"answer {n * n}")) + "\n"
                                  for n in range(2000)).encode())
    packed.write_bytes(whole[:len(whole) // 2])
    assert [one.code for one in lint(packed).findings if one.severity == "error"] == ["truncated-file"]
    empty = tmp_path / "c.jsonl"
    empty.write_text("", encoding="utf-8")
    assert [one.code for one in lint(empty).findings] == ["no-rows"]


def test_ranked_answers_are_preferences_and_no_prose(tmp_path: Path) -> None:
    good = {"prompt": "describe snow", "responses": ["cold and white", "snow"], "ranks": [1, 2]}
    report = lint(write(tmp_path / "a.jsonl", [good, {"prompt": "fire", "responses": ["hot", "hot"], "ranks": [1, 2]}]))
    assert [(one.code, one.line) for one in report.findings] == [("equal-answers", 2)]


def test_rows_before_the_place_where_a_packed_file_breaks_off_are_checked(tmp_path: Path) -> None:
    """Duplicates are compared by reading rows again, out of order, of the part that is whole."""
    rows = [talk(f"question {n * n}", f"answer {n * n % 997}") for n in range(20000)]
    twice = [row for row in rows[:1000] for _ in range(2)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in [*twice, *rows[1000:]]).encode())
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(whole[:len(whole) // 2])
    report = lint(packed)
    assert report.counts["truncated-file"] == 1 and report.counts["duplicate"] == 1000


def test_places_in_other_kinds_of_file(tmp_path: Path) -> None:
    """The fault is in row 2 everywhere: line 3 of the CSV, line 2 of packed lines, behind a BOM, row 2 of Parquet."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"instruction": "one", "output": "two"}, {"instruction": "three", "output": ""}]
    table = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(rows), table)
    cells, packed, marked = tmp_path / "b.csv", tmp_path / "c.jsonl.gz", tmp_path / "d.jsonl"
    cells.write_text("instruction,output\none,two\nthree,\n", encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    packed.write_bytes(gzip.compress(lines.encode()))
    marked.write_text("\ufeff" + lines.replace("two", ""), encoding="utf-8")
    column = json.dumps(rows[1]).rindex('""') + 1
    first = json.dumps(rows[0]).replace("two", "").rindex('""') + 1
    for path, places in ((table, [(None, None)]), (cells, [(3, None)]), (packed, [(2, column)]),
                         (marked, [(1, first), (2, column)])):
        report = lint(path)
        assert [(one.line, one.column) for one in report.sorted()] == places, path
        assert {(one.code, one.pointer) for one in report.findings} == {("empty-turn", "/output")}
    assert lint(table).findings[0].where.endswith("a.parquet row 2")


def test_duplicates_contradictions_and_leaks(tmp_path: Path) -> None:
    """Five rows: 2 repeats 1, 4 answers 3's question otherwise, 5 is asked in the evaluation data in other case."""
    train = write(tmp_path / "train.jsonl", [
        GOOD, GOOD, talk("one and one", "two"), talk("one and one", "three"), talk("What is   Rain", "wet")])
    held_out = write(tmp_path / "eval.jsonl", [talk("what is rain", "water from the sky")])
    report = lint(train, held_out=held_out)
    assert [(one.code, one.line) for one in report.sorted()] == [("duplicate", 2), ("contradiction", 4), ("leak", 5)]
    assert report.findings[0].reason.startswith(f"{held_out}:1 ")
    assert (report.rows, report.eval_rows) == (5, 1)


def test_a_pair_of_equal_answers_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "r", "chosen": "x", "rejected": "x "}]
    report = lint(write(tmp_path / "a.jsonl", rows))
    assert [(one.code, one.line, one.pointer) for one in report.findings] == [("equal-answers", 2, "/rejected")]


def test_rows_with_other_tools_are_no_duplicates(tmp_path: Path) -> None:
    rows = [GOOD | {"tools": json.dumps([{"name": name}])} for name in ("a", "b", "a")]
    report = lint(write(tmp_path / "a.jsonl", rows))
    assert [(one.code, one.line) for one in report.sorted()] == [("near-duplicate", 2), ("duplicate", 3)]


def test_first_row_without_answer_does_not_make_the_file_prompts(tmp_path: Path) -> None:
    report = lint(write(tmp_path / "a.jsonl", [talk("only a question"), GOOD]))
    assert [(one.code, one.line) for one in report.findings] == [("no-final-answer", 1)]


def test_rows_of_prompts_alone_are_data_too(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"question {n}"}], "reward_model": {"n": n}} for n in range(3)]
    assert not lint(write(tmp_path / "a.jsonl", rows)).total("error")


def test_preferences_compared(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "bad", "rejected": "good"},
            {"prompt": "z", "chosen": "x", "rejected": "y"}]
    report = lint(write(tmp_path / "a.jsonl", rows))
    assert [(one.code, one.line) for one in report.findings] == [("reversed-pair", 2)]


def test_near_duplicates_have_the_similarity_that_arithmetic_gives(tmp_path: Path) -> None:
    """200 distinct letters make 196 5-grams. Changing the last letter changes one: 195 / 197 = 0.9898 alike."""
    text = "".join(chr(0x4E00 + n) for n in range(200))
    assert similarity(text, text[:-1] + "x") == pytest.approx(195 / 197)
    other = "".join(chr(0x6E00 + n) for n in range(200))
    rows = [{"text": text}, {"text": other}, {"text": text[:-1] + "x"}, {"text": other[:100] + text[:100]}]
    report = lint(write(tmp_path / "a.jsonl", rows))
    assert [(one.code, one.line, one.reason[:4]) for one in report.findings] == [("near-duplicate", 3, "0.99")]


def test_planted_near_duplicates_are_found_and_only_they(tmp_path: Path) -> None:
    """Of 200 random texts of 300 letters each has a copy with one letter changed in the middle: 5 of its 296 grams
    differ, so the similarity is 291 / 301 = 0.967, and a pair is missed with probability (1 - 0.967^4)^8 = 5e-8."""
    random = Random(7)
    texts = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz ", k=300)).replace(" ", "_") for _ in range(200)]
    copies = [text[:150] + "天" + text[151:] for text in texts]
    report = lint(write(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *copies]]), limit=500)
    assert report.counts == {"near-duplicate": 200}
    assert [one.line for one in report.sorted()] == list(range(201, 401))
    assert {one.reason[:4] for one in report.findings} == {"0.97"}


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    rows = [talk(f"what is {n} times {n}", f"it is {n * n}, and {'x' * n} stays") for n in range(1, 60)]
    assert not lint(write(tmp_path / "a.jsonl", rows)).counts


def test_counts_stay_exact_when_the_list_is_bounded(tmp_path: Path) -> None:
    report = lint(write(tmp_path / "a.jsonl", [GOOD, *[talk(f"question {n}", "") for n in range(50)]]), limit=3)
    assert len(report.findings) == 3 and report.counts == {"empty-turn": 50}


def test_repair_keeps_mends_and_drops_and_writes_why(tmp_path: Path) -> None:
    """Of 7 rows 2 are kept, 3 mended, 2 dropped; the result has no errors, and the ledger names the other 5."""
    path = write(tmp_path / "a.jsonl", [
        GOOD, talk("a", "b", "open"), talk("hi", "c", "d", first="gpt"), talk("n", 4.5), GOOD, "broken",
        talk("last", "row")])
    sources = find_sources(DataConfig(dataset=(str(path),)), "train")
    check = Lint(repairs=True)
    check.run(sources)
    done = write_repaired(sources, check.table, check.dropped, tmp_path / "out.jsonl")
    assert done.counts == {"kept": 2, "mended": 3, "dropped": 2}
    rows = [json.loads(line) for line in done.path.read_text(encoding="utf-8").splitlines()]
    assert rows == [GOOD, talk("a", "b"), talk("c", "d"), talk("n", "4.5"), talk("last", "row")]
    ledger = [json.loads(line) for line in done.ledger.read_text(encoding="utf-8").splitlines()]
    assert [(one["row"], one["action"], one["code"]) for one in ledger] == [
        (2, "mended", "no-final-answer"), (3, "mended", "broken-alternation"), (4, "mended", "wrong-type"),
        (5, "dropped", "duplicate"), (6, "dropped", "broken-json")]
    assert not lint(done.path).counts
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "out.jsonl", "out.jsonl.ledger.jsonl"]


def test_half_a_character_is_told_not_stumbled_over(tmp_path: Path, tiny_base: Path, danlu: Run,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    """JSON may hold `\\ud83d` alone, half of a cat: no tokenizer takes it and no terminal prints it."""
    path = write(tmp_path / "a.jsonl", [GOOD, json.dumps(talk("a", "x \ud83d y"), ensure_ascii=True)])
    for words in ([], ["--json"], ["--model", str(tiny_base)]):
        assert danlu("data", ["lint", str(path), *words]) == 1
        assert "lone-surrogate" in capsys.readouterr().out
    assert danlu("data", ["stats", str(path), "--model", str(tiny_base)]) == 0
    assert danlu("data", ["lint", str(path), "--fix", str(tmp_path / "out.jsonl")]) == 1
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_exit_codes_and_nothing_half_written(tmp_path: Path, danlu: Run, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", [GOOD, GOOD])
    bad = write(tmp_path / "bad.jsonl", [GOOD, "x"])
    out = write(tmp_path / "out.jsonl", [])
    (tmp_path / "empty").mkdir()
    assert danlu("data", ["lint", str(good)]) == 0
    assert danlu("data", ["lint", str(good), "--strict"]) == 1
    assert danlu("data", ["lint", str(bad)]) == 1
    for words, said in (
            ([str(tmp_path / "nowhere.jsonl")], "no file or folder"), ([str(good), "--fix", str(out)], "exists"),
            ([str(good), "--fix", str(tmp_path / "out.csv")], ".jsonl"), ([str(good), "--fromat", "alpaca"], "fromat"),
            ([str(good), "--format", "alpca"], "alpaca"), ([], "usage"),
            ([str(tmp_path / "empty")], "no data file"),
            ([str(bad), "--fix", str(tmp_path / "no" / "o.jsonl")], "folder"),
            ([str(good), "--limit", "x"], "--limit"),
            ([str(good), "--only", "duplicat"], "duplicate"), (["--json"], "no data is named")):
        capsys.readouterr()
        assert danlu("data", ["lint", *words]) == 2, words
        assert said in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.jsonl", "empty", "good.jsonl", "out.jsonl"]


def test_json_output_is_the_report(tmp_path: Path, danlu: Run, capsys: pytest.CaptureFixture[str]) -> None:
    danlu("data", ["lint", str(write(tmp_path / "bad.jsonl", [GOOD, talk("a", "")])), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["errors"], report["warnings"]) == (2, 1, 0)
    assert report["findings"][0]["code"] == "empty-turn" and report["findings"][0]["line"] == 2


def test_long_answers_are_told_with_a_tokenizer(
        tmp_path: Path, tiny_base: Path, danlu: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """At cutoff_len 40 the second answer loses its end, the third row has no room for any answer."""
    path = write(tmp_path / "a.jsonl", [talk("sky", "blue"), talk("cat", "x" * 100), talk("y" * 200, "z"),
                                        talk("say", "<|im_start|>")])
    assert danlu("data", ["lint", str(path), "--model", str(tiny_base), "--cutoff_len", "40", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(one["code"], one["line"]) for one in report["findings"]] == [
        ("eos-lost", 2), ("row-lost", 3), ("control-token", 4)]


def test_lint_needs_no_torch_and_little_memory(tmp_path: Path) -> None:
    """4,000 rows of 5,000 letters: 20 MB, of which 92 bytes a row are kept; the process grows by less than 12 MB."""
    path = tmp_path / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(4_000):
            file.write(json.dumps(talk(f"{n} what", f"{n * 7919 % 1000003} " * 720)) + "\n")
    code = ("import resource, sys; from danlu.cli.main import main; import numpy, danlu.cli.data_lint\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"code = main(['data', 'lint', {str(path)!r}, '--limit', '1'])\n"
            "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
            "print('grown', after - before, code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, result = done.stdout.split("grown ")[1].split()
    assert int(result) == 0 and int(grown) < 12_000


def test_a_hundred_megabytes_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n")
        file.writelines(b"x" * (1 << 20) for _ in range(100))
        file.write(b"\n" + json.dumps(talk("a", "b")).encode() + b"\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = lint(path)
    assert [(one.code, one.line) for one in report.findings] == [("endless-line", 2)]
    assert report.rows == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_every_code_has_a_cure_and_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data_lint.md").read_text(encoding="utf-8")
    assert all(kind.cure and kind.meaning for kind in CODES.values())
    assert [code for code in CODES if f"`{code}`" not in page] == []


@pytest.mark.shared
def test_real_demo_files(shared: Path) -> None:
    """identity.json: 85 answers with {{name}} or {{author}}; alpaca_zh_demo.json: 8 rows that are there already."""
    folder = shared / "data" / "LLaMA-Factory" / "data"
    identity, alpaca = lint(folder / "identity.json"), lint(folder / "alpaca_zh_demo.json")
    rows = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
    assert identity.counts["placeholder"] == sum("{{" in row["output"] for row in rows) > 50
    rows = json.loads((folder / "alpaca_zh_demo.json").read_text(encoding="utf-8"))
    distinct = {(row["instruction"], row["input"], row["output"]) for row in rows}
    assert alpaca.counts["duplicate"] == len(rows) - len(distinct) > 0
    assert not identity.total("error") and not alpaca.total("error")
    tools = json.loads((folder / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    distinct = {json.dumps([row["conversations"], row["tools"]]) for row in tools}
    assert lint(folder / "glaive_toolcall_en_demo.json").counts["duplicate"] == len(tools) - len(distinct)


@pytest.mark.parametrize(("text", "meant"), [
    ("l'été à Paris".encode().decode("cp1252"), "l'été à Paris"),
    ("l'été".encode().decode("cp1252"), "l'été"), ("你好世界".encode().decode("gbk"), "你好世界"),
    ("l'été", ""), ("你好世界", ""), ("联通", ""), ("naïve café", ""), ("plain", "")])
def test_text_read_in_the_wrong_encoding(text: str, meant: str) -> None:
    """Text that survives the way back through the wrong encoding is told with what it meant; ordinary text is left."""
    assert misread(text) == meant


@pytest.mark.parametrize("stranger", [{"text": "prose"}, {"prompt": "a", "chosen": "b", "rejected": "c"}])
def test_rows_of_another_kind_are_mixed_formats(stranger: dict[str, str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [json.dumps(talk("a", "b")), json.dumps(stranger)])
    assert [(one.code, one.row) for one in lint(path).findings] == [("mixed-formats", 2)]
