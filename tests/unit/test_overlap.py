"""Contamination by n-grams against a brute-force count, and the verb end to end."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.main import main
from danlu.data.overlap import OverlapConfig, OverlapReport, find_overlap

QUESTION = "a train leaves the station at noon going sixty miles per hour toward the east coast"      # 16 words
QUESTION_ZH = "如果一个长方形的长是宽的两倍并且周长是三十厘米"                                        # 23 signs


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def compare(folder: Path, train: list[Any], evaluation: list[Any], **keys: Any) -> OverlapReport:
    return find_overlap(OverlapConfig.model_validate({
        "train": write(folder / "train.jsonl", train), "eval": write(folder / "eval.jsonl", evaluation), **keys}))


def test_known_shares(tmp_path: Path) -> None:
    """16 words have 4 13-grams. Training row 2 holds the first 14 words: 2 of 4; row 3 all of the Chinese question."""
    first = " ".join(QUESTION.split()[:14])
    train = [{"text": "nothing of interest in this row at all but many words that fill it up"},
             {"text": f"He said: {first.upper().replace(' at', ', at')}! And left."},
             {"conversations": [{"from": "human", "value": "题：" + QUESTION_ZH.replace("并且", "，并且")}]}]
    evaluation = [{"question": QUESTION, "answer": "42"}, {"question": QUESTION_ZH, "answer": "50"},
                  {"question": "what is two plus two", "answer": "4"}]
    report = compare(tmp_path, train, evaluation)
    one, two, three = report.rows
    assert (one.ngrams, one.found, one.share, one.train) == (4, 2, 0.5, f"{tmp_path}/train.jsonl:2")
    assert (two.ngrams, two.found, two.train) == (11, 11, f"{tmp_path}/train.jsonl:3")
    assert (three.ngrams, three.is_contaminated, report.too_short) == (0, False, 1)
    assert report.share == 1.0, "two of the two rows that could be judged"
    assert compare(tmp_path, train, evaluation, min_share=0.5).share == 0.5


def test_short_question_is_found_whole_and_only_whole(tmp_path: Path) -> None:
    """A question of 9 words is one gram; 8 of them in a row are no find. The answer need not stand beside it."""
    question = "who wrote the first book about the old castle"
    whole = compare(tmp_path, [{"text": f"x {question} y"}], [{"question": question, "answer": "nobody knows that"}])
    part = compare(tmp_path, [{"text": question[:-7]}], [{"question": question, "answer": "nobody knows that"}])
    assert [row.share for row in (*whole.rows, *part.rows)] == [1.0, 0.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_against_brute_force(workers: int, tmp_path: Path) -> None:
    """Random rows over few words, 4-grams: shares, and the training row with most of them, as sets of tuples say."""
    rng = random.Random(5)
    vocabulary = [chr(97 + at) * 3 for at in range(12)]
    rows = [[rng.choice(vocabulary) for _ in range(rng.randint(4, 30))] for _ in range(2700)]
    train, evaluation = rows[:2600], rows[2600:]
    train_rows, eval_rows = ([{"text": " ".join(row)} for row in part] for part in (train, evaluation))
    report = compare(tmp_path, train_rows, eval_rows, ngram=4, min_tokens=4, max_rows=1000,
                     num_workers=workers)
    sets = [{tuple(row[at:at + 4]) for at in range(len(row) - 3)} for row in rows]
    everything = set().union(*sets[:2600])
    for row, grams in zip(report.rows, sets[2600:], strict=True):
        common = [len(grams & one) for one in sets[:2600]]
        assert (row.ngrams, row.found) == (len(grams), len(grams & everything))
        assert row.train_share == round(max(common) / len(grams), 4)
        if max(common):
            assert int(row.train.rsplit(":", 1)[1]) - 1 == common.index(max(common))
    assert 0 < report.share < 1


def test_the_frame_of_all_questions_does_not_count(tmp_path: Path) -> None:
    """16 words before each of 12 questions are in the training data; they are 4 13-grams that say nothing."""
    frame = "answer the following question with one of the letters a b c d and nothing else"
    words = [[f"w{number}x{at}" for at in range(20)] for number in range(12)]
    evaluation = [{"question": f"{frame} {' '.join(row)}"} for row in words]
    train = [{"text": frame}, {"text": " ".join(words[3])}]
    report = compare(tmp_path, train, evaluation)
    assert report.num_frame == 4 and [row.row for row in report.contaminated] == [4]
    assert compare(tmp_path, train, evaluation, max_rows=12).share == 1.0


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 with the report; 1 with --fail_above when the share is above it, and the report is there too."""
    train = write(tmp_path / "t.jsonl", [{"text": QUESTION}])
    evaluation = write(tmp_path / "e.jsonl", [{"question": QUESTION}, {"question": QUESTION_ZH}])
    assert main(["data", "overlap", train, evaluation]) == 0
    said = capsys.readouterr().out
    assert "contaminated: 1 of 2 rows (50.00%)" in said and f"{train}:1" in said and f"{evaluation}:1" in said
    assert main(["data", "overlap", train, evaluation, "--fail-above", "0.5"]) == 0
    assert main(["data", "overlap", train, evaluation, "--fail-above", "0.4", "--out", str(tmp_path / "r.jsonl")]) == 1
    assert "50.00% of the evaluation rows" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["is_contaminated"] for row in rows] == [True, False]


@pytest.mark.parametrize(("words", "part"), [
    (["t.jsonl"], "eval is needed"), (["t.jsonl", "gone.jsonl"], "no file or folder"),
    (["t.jsonl", "empty.jsonl"], "no rows"), (["empty.jsonl", "t.jsonl"], "no rows"),
    (["t.jsonl", "t.jsonl", "--ngram", "1"], "greater than or equal to 2"),
    (["t.jsonl", "t.jsonl", "--fail_over", "1"], '"fail_above"'),
    (["t.jsonl", "t.jsonl", "--out", "t.jsonl"], "inputs")])
def test_mistakes(words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.jsonl", [{"text": QUESTION}])
    (tmp_path / "empty.jsonl").touch()
    assert main(["data", "overlap", *words]) == 2
    said = capsys.readouterr().err
    assert part in said and "Traceback" not in said


@pytest.mark.parametrize("words", [
    ["overlap", "{t}", "{t}"], ["dedup", "{t}", "{o}"], ["clean", "{r}"]])
def test_no_torch(words: list[str], tmp_path: Path) -> None:
    """A process that cleans, drops duplicates or compares never imports torch, transformers or datasets."""
    places = {"t": write(tmp_path / "t.jsonl", [{"text": QUESTION}]), "o": str(tmp_path / "o.jsonl"),
              "r": str(tmp_path / "r.yaml")}
    Path(places["r"]).write_text(f"input: {places['t']}\noutput: {places['o']}\nfilters: [length, unicode]\n")
    code = ("import sys; from danlu.cli.main import main; code = main(sys.argv[1:]);"
            "print(code, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, "data", *(word.format(**places) for word in words)],
                          capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
