"""`danlu data judge` against a real server on this machine: fair, biased, busy, silent and babbling judges."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from danlu.cli.main import main
from danlu.core.errors import ConfigError, DataError, UserError
from danlu.core.records import Message, Preference
from danlu.data.config import DataConfig
from danlu.data.judge.config import JudgeConfig
from danlu.data.judge.run import judge
from danlu.data.judge.wording import question, verdict_of
from danlu.data.loader import load_records

Answer = Callable[[str, str], tuple[int, str]]


def longer(first: str, second: str) -> tuple[int, str]:
    """Prefer the longer answer; of equally long ones always the one shown first."""
    return 200, f"I counted.\n\nVerdict: {'A' if len(first) >= len(second) else 'B'}"


class Server(ThreadingHTTPServer):
    """Takes two answers out of the question and asks `judge`; keeps each request."""

    daemon_threads = True
    judge: Answer
    seen: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        text = body["messages"][0]["content"]
        first, _, rest = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")
        status, said = self.server.judge(first, rest.partition("\n\nFirst explain")[0])
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(("127.0.0.1", 0), Handler)
    one.judge, one.seen = longer, []
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def settings(server: Server, folder: Path, rows: list[Any] | None = None, **keys: Any) -> JudgeConfig:
    """Write the rows and return the keys that judge them."""
    if rows is not None:
        (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JudgeConfig.model_validate({
        "input": str(folder / "asked.jsonl"), "output": str(folder / "out" / "pairs.jsonl"), "model": "wise",
        "url": f"http://127.0.0.1:{server.server_address[1]}/v1", "concurrency": 3, "retries": 2, **keys})


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = [{"prompt": "what is the sky", "responses": ["blue", "blue and wide"]},
        {"prompt": "what is rain", "responses": ["wet", "dry", "water that falls"]},
        {"messages": [{"role": "system", "content": "short"}, {"role": "user", "content": "the cat"}],
         "responses": ["sat {first} down", "sat"]},
        {"prompt": "the sun", "responses": ["warm", "warm "]}]


def test_both_orders_must_agree(server: Server, tmp_path: Path) -> None:
    """Six pairs: two equally long answers (the judge prefers what comes first: a tie), two alike, four judged."""
    config = settings(server, tmp_path, ROWS)
    assert judge(config) == {"judged": 4, "tie": 1, "equal": 1}
    rows = lines(tmp_path / "out" / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("blue and wide", "blue"), ("water that falls", "wet"), ("water that falls", "dry"),
        ("sat {first} down", "sat")]
    assert rows[0]["votes"] == ["B", "A"] and rows[0]["judge"] == "wise"
    ledger = lines(config.ledger_path)
    assert [one["outcome"] for one in ledger[:-1]] == ["judged", "tie", "judged", "judged", "judged", "equal"]
    assert ledger[1] == {"source": str(tmp_path / "asked.jsonl"), "row": 2, "outcome": "tie", "answers": ["1", "2"],
                         "votes": ["A", "A"]}
    assert len(server.seen) == 10 and {one["path"] for one in server.seen} == {"/v1/chat/completions"}
    assert {(one["temperature"], one["model"], one["key"]) for one in server.seen} == {(0, "wise", None)}


def test_the_output_is_a_data_set(server: Server, tmp_path: Path) -> None:
    """Registered beside the rows and read back as preferences, with the system turn where there was one."""
    judge(settings(server, tmp_path, ROWS, name="liked"))
    records = load_records(DataConfig(dataset=("liked",), dataset_dir=str(tmp_path / "out")), Preference)
    assert [one.content for one in records[0].answers] == ["blue and wide", "blue"]
    assert records[3].prompt == (Message("system", "short"), Message("user", "the cat"))
    other = settings(server, tmp_path, output=str(tmp_path / "out" / "more.jsonl"), name="liked")
    with pytest.raises(ConfigError, match="registered already"):
        judge(other)


def test_a_stopped_run_asks_for_nothing_twice(server: Server, tmp_path: Path) -> None:
    """Killed in the middle, its journal torn: the next run asks the rest, and both files equal those of a whole run."""
    whole = settings(server, tmp_path, ROWS, output=str(tmp_path / "whole" / "pairs.jsonl"))
    judge(whole)
    config = settings(server, tmp_path)
    server.judge = lambda first, second: longer(first, second) if len(server.seen) <= 14 else (503, "")
    server.seen.clear()
    server.seen.extend([{}] * 10)
    with pytest.raises(UserError, match="in a row failed"):
        judge(settings(server, tmp_path, give_up_after=1, retries=0, concurrency=1), pause=0.0)
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    kept = config.journal_path.read_bytes()
    config.journal_path.write_bytes(kept + b'{"key": "ab')
    server.judge = longer
    server.seen.clear()
    judge(config)
    assert len(server.seen) == 10 - kept.count(b"\n") and kept.count(b"\n") == 4
    for name in ("pairs.jsonl", "_pairs.ledger.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_babble_and_refusals_are_in_the_ledger(server: Server, tmp_path: Path) -> None:
    """A reply without verdict is kept out with its last line; a question that is refused fails alone, after one try."""
    def odd(first: str, second: str) -> tuple[int, str]:
        if "blue" in first:
            return 200, "Verdict: A\nor perhaps B"
        return (400, "") if "sat" in first else longer(first, second)

    server.judge = odd
    config = settings(server, tmp_path, ROWS)
    assert judge(config) == {"unparsable": 1, "tie": 1, "judged": 2, "failed": 1, "equal": 1}
    ledger = lines(config.ledger_path)
    assert ledger[0]["detail"] == ["or perhaps B"] * 2
    assert ledger[4]["detail"][0].startswith("status 400") and len(server.seen) == 10


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    """Each question is answered at the third try."""
    tries: dict[tuple[str, str], int] = {}

    def busy(first: str, second: str) -> tuple[int, str]:
        tries[first, second] = tries.get((first, second), 0) + 1
        return longer(first, second) if tries[first, second] == 3 else ((429, ""), (500, ""))[tries[first, second] - 1]

    server.judge = busy
    assert judge(settings(server, tmp_path, ROWS[:1]), pause=0.001)["judged"] == 1
    assert set(tries.values()) == {3}
    server.judge = lambda first, second: (401, "")
    with pytest.raises(ConfigError, match="refuses every question"):
        judge(settings(server, tmp_path, ROWS[1:2], overwrite=True))


def test_answers_of_several_models_are_joined(server: Server, tmp_path: Path) -> None:
    """By prompt; where a template wrote it, by the data that was answered, in its order, rows left out or not."""
    answers = {"one": [("sky", "blue", "x"), ("rain", "wet", "y")], "two": [("rain", "wet and cold", "y")]}
    for name, rows in answers.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"prompt": p, "predict": a, "label": y}) + "\n" for p, a, y in rows))
    both = f"{tmp_path}/one.jsonl,{tmp_path}/two.jsonl"
    assert judge(settings(server, tmp_path, input=both)) == {"judged": 1}
    row = lines(tmp_path / "out" / "pairs.jsonl")[0]
    assert (row["chosen_by"], row["rejected_by"], row["prompt"][0]["content"]) == ("two", "one", "rain")
    (tmp_path / "set.json").write_text(json.dumps([{"instruction": q, "output": a} for q, a in (
        ("Sky?", "x"), ("Rain?", "y"))]))
    for name in ("one", "two"):
        text = (tmp_path / f"{name}.jsonl").read_text().replace('"rain"', json.dumps(f"<|{name}|>rain"))
        (tmp_path / f"{name}.jsonl").write_text(text)
    with pytest.raises(DataError, match="control tokens"):
        judge(settings(server, tmp_path, input=both, overwrite=True))
    judge(settings(server, tmp_path, input=both, overwrite=True, prompts=str(tmp_path / "set.json")))
    assert lines(tmp_path / "out" / "pairs.jsonl")[0]["prompt"][0]["content"] == "Rain?"


@pytest.mark.parametrize(("row", "part"), [
    ({"prompt": "the sky"}, "no answers"), ({"responses": ["a", "b"]}, "no prompt"), (["x"], "no answers")])
def test_rows_that_hold_no_choice(server: Server, tmp_path: Path, row: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        judge(settings(server, tmp_path, [row]))
    assert not server.seen


@pytest.mark.parametrize(("reply", "verdict"), [
    ("because.\nVerdict: A", "A"), ("x\n**Verdict: B**\n\n", "B"), ("Verdict: tie.", "tie"), ("结论：A", "A"),
    ("结论：平局。", "tie"), ("Verdict: A\nVerdict: A or B", ""), ("A", ""), ("", ""), ("Verdict: C", "")])
def test_the_verdict_stands_in_the_last_line(reply: str, verdict: str) -> None:
    assert verdict_of(reply) == verdict


def test_marks_inside_answers_stay() -> None:
    """An answer that holds {second} is shown as it is."""
    text = question([Message("user", "{first}?")], "{second}", "two", "zh")
    assert "用户: {first}?" in text and "【回答 A】\n{second}\n" in text and "【回答 B】\ntwo\n" in text


def test_a_reward_model_judges(tmp_path: Path, tiny_base: Path) -> None:
    """The scores are those of the network by itself, whatever stands beside it; equal answers are left out."""
    import torch

    from danlu.core.records import Origin
    from danlu.evaluation.score_answers import answer_scorer

    base = shutil.copytree(tiny_base, tmp_path / "base")
    torch.manual_seed(3)
    save_file({"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.zeros(1)},
              base / "value_head.safetensors")
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert main(["data", "judge", f"{tmp_path}/asked.jsonl", f"{tmp_path}/out/pairs.jsonl", "--reward_model", str(base)]
                ) == 0
    rows = lines(tmp_path / "out" / "pairs.jsonl")
    assert len(rows) == 5 and all(row["votes"][0] > row["votes"][1] for row in rows)
    score = answer_scorer(str(base), template=None, cutoff_len=2048)
    alone = score([Preference((Message("user", "what is the sky"),), (
        Message("assistant", rows[0]["chosen"]), Message("assistant", rows[0]["rejected"])), Origin("x", 1))])
    assert alone[0] == pytest.approx(rows[0]["votes"], abs=1e-4)
    ledger = lines(tmp_path / "out" / "_pairs.ledger.jsonl")
    assert [one["outcome"] for one in ledger[:-1]] == [*["judged"] * 5, "equal"]
    assert score([Preference((Message("user", "x " * 3000),), (
        Message("assistant", "a"), Message("assistant", "b")), Origin("x", 1))]) == [None]


def test_the_verb(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(server, tmp_path, ROWS)
    words = [f"{tmp_path}/asked.jsonl", config.output, "--url", config.url, "--model", "wise"]
    assert main(["data", "judge", *words]) == 0
    assert "6 pairs: 4 judged (66.7 %)" in capsys.readouterr().out
    assert main(["data", "judge", *words]) == 2
    assert "this file exists" in capsys.readouterr().err
