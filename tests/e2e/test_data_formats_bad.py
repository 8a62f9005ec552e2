"""Bad files as a new user brings them to training: one error with its place, exit code 2, nothing half-written."""

import gzip
import json

import pytest

GOOD = {"instruction": "what is rain", "output": "wet"}


def talk(*roles):
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def long_line():
    return lines(GOOD) + b'{"instruction": "q", "output": "' + b"x" * 100_000_000 + b'"}\n'


FILES = {
    "broken alternation": ("a.jsonl", lambda: lines(talk("human", "gpt"), talk("human", "human")),
                           "a.jsonl:2: /conversations/1/value: found a user turn after a user turn"),
    "missing answer": ("a.jsonl", lambda: lines(talk("human", "gpt"), talk("human")),
                       "a.jsonl:2: /conversations/0/value: found a dialogue that ends on a user turn"),
    "odd turns": ("a.jsonl", lambda: lines(talk("human", "gpt", "human")), "a.jsonl:1: /conversations/2/value"),
    "null answer in JSON lines named json": ("a.json", lambda: lines(GOOD, GOOD | {"output": None}),
                                             "a.json:2: /output: found null, expected a string"),
    "truncated gz": ("a.jsonl.gz", lambda: gzip.compress(lines(*[GOOD] * 1000))[:-20],
                     "truncated or damaged gzip file"),
    "a line of 100 MB": ("a.jsonl", long_line, "a.jsonl:2: the line is longer than 64 MiB"),
    "wrong encoding": ("a.jsonl", lambda: lines(GOOD) + '{"instruction": "天"}\n'.encode("gb18030"),
                       "a.jsonl:2: not UTF-8: byte 66 of the file"),
    "ragged csv": ("a.csv", lambda: b"instruction,output\na,b\na,b,c\n", "a.csv:3: 3 cells where the header has 2"),
    "two kinds in one file": ("a.jsonl", lambda: lines(GOOD, talk("human", "gpt")), "this row looks like sharegpt"),
    "preferences": ("a.jsonl", lambda: lines({"prompt": "q", "chosen": "a", "rejected": "b"}),
                    "a.jsonl:1: the row holds a preference pair"),
    "no columns known": ("a.csv", lambda: b"alpha,beta\n1,2\n", "a.csv:2: no known data format has the keys alpha"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_error_with_its_place(name, danlu, tiny_base, tmp_path, capsys):
    file, content, message = FILES[name]
    (tmp_path / file).write_bytes(content())
    run(danlu, tiny_base, tmp_path, str(tmp_path / file))
    refused(capsys, tmp_path, message)


def test_an_empty_folder_is_one_error(danlu, tiny_base, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run(danlu, tiny_base, tmp_path, str(tmp_path / "empty"))
    refused(capsys, tmp_path, "empty: no data file in this folder")


def test_two_sets_of_different_kinds_are_one_error(danlu, tiny_base, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "b.jsonl").write_bytes(lines({"prompt": "q", "chosen": "a", "rejected": "b"}))
    run(danlu, tiny_base, tmp_path, f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")
    refused(capsys, tmp_path, "b.jsonl:1: the row holds a preference pair")


def run(danlu, base, folder, dataset):
    code = danlu("train", {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "dataset": dataset, "output_dir": str(folder / "out"), "max_steps": 1})
    assert code == 2


def refused(capsys, folder, message):
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("fix: ") == 1, said
    left = [path.name for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin") or ".part-" in path.name]
    assert left == []
