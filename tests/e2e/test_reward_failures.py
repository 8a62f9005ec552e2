"""A reward that fails while training: the run stops with a checkpoint of its last step, and goes on as if unharmed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from danlu.cli.main import main


class Handler(BaseHTTPRequestHandler):
    """Scores a text by its number of `a`; once out of patience it answers with a page."""

    server: "Server"

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        self.server.patience -= 1
        is_alive = self.server.patience >= 0
        scores = json.dumps({"scores": [text.count("a") for text in texts]})
        body = (scores if is_alive else "<html>gone</html>").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    patience = 10**6


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_nothing_is_lost_when_the_server_fails(
    stage: str, server: Server, tiny_base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    """Fails in step 3 of 4, again when tried again, then not: the weights are those of a run without failures."""
    def run(name: str, patience: int) -> int:
        server.patience = patience
        return main(["train", f"stage={stage}", f"model_name_or_path={tiny_base}", f"dataset_dir={world}",
                     "dataset=chat", "max_steps=4", "per_device_train_batch_size=2", "max_new_tokens=3",
                     "learning_rate=1e-2", "save_strategy=no", "disable_tqdm=true", "reward_model_type=api",
                     "reward_retries=0", f"reward_model=http://127.0.0.1:{server.server_port}/score",
                     f"output_dir={tmp_path / name}"])

    assert run("whole", 100) == 0
    capsys.readouterr()
    for patience in (2, 0):
        assert run("broken", patience) == 2
        told = capsys.readouterr().err
        assert "the reply is no JSON: <html>gone</html>" in told
        assert f"the run is saved in {tmp_path / 'broken' / 'checkpoint-2'}" in told
        assert ("resuming from" in told) == (patience == 0)
        assert (tmp_path / "broken" / "checkpoint-2" / "manifest.json").is_file()
    assert run("broken", 100) == 0
    whole, mended = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all((mended[name] == weight).all() for name, weight in whole.items())


def test_a_function_that_fails_in_the_middle(
    tiny_base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    """NaN in the second call: exit code 2, the row named, the first step kept."""
    body = ("calls = 0\ndef score(completions):\n    global calls\n    calls += 1\n"
            "    return [1.0, 0.0 if calls == 1 else float('nan')]\n")
    (tmp_path / "mine.py").write_text(body, encoding="utf-8")
    code = main(["train", "stage=ppo", f"model_name_or_path={tiny_base}", f"dataset_dir={world}", "dataset=chat",
                 "max_steps=4", "per_device_train_batch_size=2", "max_new_tokens=3", "disable_tqdm=true",
                 "reward_model_type=function", f"reward_model={tmp_path}/mine.py:score", f"output_dir={tmp_path}/out"])
    told = capsys.readouterr().err
    assert code == 2 and "is nan" in told and "chat.json:" in told
    assert (tmp_path / "out" / "checkpoint-1" / "manifest.json").is_file()
