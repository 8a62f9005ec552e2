"""Rewards over HTTP against a real server on this machine that misbehaves in each way, then or forever."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from torch import nn

from danlu.core.errors import UserError
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.rewards.api import ApiReward
from danlu.rewards.base import Answer, RewardContext, RewardError
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import build_rewards
from tests.tiny import tiny_tokenizer

Behaviour = Callable[["Handler", list[str]], None]
TOKENIZER = tiny_tokenizer()


class Handler(BaseHTTPRequestHandler):
    """Answers each request by the next behaviour of the script; the last one stays."""

    server: "Server"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self, body["messages"])

    def reply(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    script: list[Behaviour]
    seen: list[dict[str, Any]]
    daemon_threads = True


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(("127.0.0.1", 0), Handler)
    one.script, one.seen = [good], []
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def good(handler: Handler, texts: list[str]) -> None:
    """Score each text by its number of characters."""
    handler.reply(json.dumps({"scores": [len(text) for text in texts]}).encode())


def says(body: str, status: int = 200) -> Behaviour:
    return lambda handler, _: handler.reply(body.encode(), status)


def dies(handler: Handler, _: list[str]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def dies_halfway(handler: Handler, _: list[str]) -> None:
    handler.reply(b'{"scores": [1', length=100)
    handler.connection.shutdown(socket.SHUT_RDWR)


def hangs(handler: Handler, _: list[str]) -> None:
    time.sleep(0.6)


def drips(handler: Handler, _: list[str]) -> None:
    """Send a byte every twentieth of a second: no single read times out."""
    handler.reply(b"", length=1000)
    for _ in range(20):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1/score/evaluation"


def source(address: str, **keys: Any) -> ApiReward:
    given = {"reward_retries": 2, "reward_timeout": 5.0, **keys}
    return ApiReward(address, TOKENIZER, RewardKeys(reward_model=address, reward_model_type="api", **given), pause=0.01)


def answers(*texts: str) -> list[Answer]:
    prompt = tuple(TOKENIZER("<|im_start|>the cat", add_special_tokens=False)["input_ids"])
    return [Answer(prompt, tuple(TOKENIZER(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"]), text)
            for text in texts]


TWO = answers("sat", "sat on a mat")
LENGTHS = [len("<|im_start|>the catsat<|im_end|>"), len("<|im_start|>the catsat on a mat<|im_end|>")]


def test_whole_dialogues_go_out_and_scores_come_back(server: Server) -> None:
    """Three answers, two in a request: the field's protocol, order kept."""
    context = RewardContext(TOKENIZER, None, nn.Identity(), ModelConfig(), QuantizationConfig(), AdapterConfig())
    keys = RewardKeys(reward_model=url(server), reward_model_type="api", reward_batch_size=2)
    table = build_rewards(keys, context).score([*TWO, TWO[0]])
    assert table.total == [*LENGTHS, LENGTHS[0]]
    assert [len(one["messages"]) for one in server.seen] == [2, 1]
    assert server.seen[0] == {"model": "reward", "messages": [
        "<|im_start|>the catsat<|im_end|>", "<|im_start|>the catsat on a mat<|im_end|>"]}


MISBEHAVIOUR: dict[str, tuple[Behaviour, str]] = {
    "status 500": (says("oh no", 500), "status 500 (oh no)"),
    "status 429": (says("too many", 429), "status 429"),
    "no JSON": (says("<html>busy</html>"), "no JSON: <html>busy</html>"),
    "empty": (says(""), "no JSON: nothing"),
    "a list": (says("[1, 2]"), 'no list "scores"'),
    "too few": (says('{"scores": [1]}'), "1 scores for 2 texts"),
    "NaN": (says('{"scores": [1, NaN]}'), "NaN is no finite number"),
    "beyond float32": (says('{"scores": [1, 1e39]}'), "is no finite number"),
    "text": (says('{"scores": [1, "2"]}'), '"2" is no finite number'),
    "null": (says('{"scores": [null, 1]}'), "null is no finite number"),
    "dies": (dies, ""),
    "dies halfway": (dies_halfway, ""),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_failure_is_tried_again(server: Server, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour, said = MISBEHAVIOUR[name]
    server.script = [behaviour, behaviour, good]
    assert source(url(server)).score(TWO) == LENGTHS
    told = capsys.readouterr().err
    assert told.count("trying again") == 2 and said in told and len(server.seen) == 3


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_lasting_failure_stops_with_what_came_back(server: Server, name: str) -> None:
    behaviour, said = MISBEHAVIOUR[name]
    server.script = [behaviour]
    with pytest.raises(RewardError) as caught:
        source(url(server)).score(TWO)
    for part in (url(server), "failed 3 times", said, "goes on from its last checkpoint"):
        assert part in str(caught.value)
    assert len(server.seen) == 3


@pytest.mark.parametrize("slow", [hangs, drips])
def test_slow_replies_time_out(server: Server, slow: Behaviour) -> None:
    """0.2 s for a whole reply, whether nothing comes or a byte now and then; then the next try."""
    server.script = [slow, good]
    began = time.monotonic()
    assert source(url(server), reward_timeout=0.2).score(TWO) == LENGTHS
    assert 0.2 <= time.monotonic() - began < 1.5
    server.script = [slow]
    with pytest.raises(RewardError, match="failed 1 times in a row; the last time: no whole reply within 0.2 s"):
        source(url(server), reward_timeout=0.2, reward_retries=0).score(TWO)


def test_other_refusals_stop_at_once(server: Server) -> None:
    server.script = [says("no such path", 404)]
    with pytest.raises(RewardError, match=r"refuses the request: status 404 \(no such path\)"):
        source(url(server)).score(TWO)
    assert len(server.seen) == 1


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    with pytest.raises(RewardError, match="Connection refused"):
        source(address, reward_retries=1).score(TWO)


def test_pauses_double(server: Server) -> None:
    """0.01 + 0.02 + 0.04 s between four tries."""
    server.script = [says("", 503)]
    began = time.monotonic()
    with pytest.raises(RewardError, match="failed 4 times"):
        source(url(server), reward_retries=3).score(TWO)
    assert time.monotonic() - began >= 0.07


@pytest.mark.parametrize("address", ["reward.example/score", "ftp://reward.example", "http://"])
def test_what_is_no_url(address: str) -> None:
    context = RewardContext(TOKENIZER, None, nn.Identity(), ModelConfig(), QuantizationConfig(), AdapterConfig())
    with pytest.raises(UserError, match="is no URL"):
        build_rewards(RewardKeys(reward_model=address, reward_model_type="api"), context)
