"""Runs of ppo from the command: every kind of reward, what breaks in the middle, what is told and evaluated."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from danlu.cli.main import main
from tests.distributed.test_train_processes import in_two_processes
from tests.reading import metrics, read_json
from tests.tiny import CHATML, FAMILIES, save_tiny, tiny_tokenizer


class Handler(BaseHTTPRequestHandler):
    """Scores a dialogue by its number of characters."""

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        body = json.dumps({"scores": [len(text) / 7 for text in texts]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def made(tiny_base: Path, world: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One source of each kind; the reward models are trained here."""
    folder = tmp_path_factory.mktemp("rewards")
    for kind in ("lora", "full"):
        assert main(["train", "stage=rm", f"model_name_or_path={tiny_base}", f"finetuning_type={kind}", "dataset=pairs",
                     f"dataset_dir={world}", "max_steps=2", "learning_rate=1e-2", "save_strategy=no",
                     "disable_tqdm=true", f"output_dir={folder / kind}"]) == 0
    torch.manual_seed(1)
    judge = LlamaForSequenceClassification(LlamaConfig(
        **FAMILIES["llama"], vocab_size=320, pad_token_id=0, num_labels=2, id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1}))
    judge.save_pretrained(folder / "classifier")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(folder / "classifier")
    (folder / "rules.yaml").write_text("- regex: '[a-m]'\n  weight: 0.5\n", encoding="utf-8")
    return {"lora": f"{folder}/lora", "full": f"{folder}/full", "classifier": f"{folder}/classifier", "api": url,
            "function": f"{world}/reward.py:letters", "rules": f"{folder}/rules.yaml"}


def ppo(base: Path, world: Path, out: Path, *keys: str) -> int:
    """Run two steps of four prompts with answers of at most four tokens, unless the keys say otherwise."""
    return main(["train", "stage=ppo", f"model_name_or_path={base}", "dataset=chat", f"dataset_dir={world}",
                 "max_steps=2", "per_device_train_batch_size=4", "max_new_tokens=4", "learning_rate=5e-3",
                 "save_strategy=no", "disable_tqdm=true", "logging_steps=1", "rollout_log_samples=-1",
                 f"output_dir={out}", *keys])


def told(out: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the answers of rollouts.jsonl by step."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in (out / "rollouts.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], []).append(row)
    return steps


def weights(out: Path) -> dict[str, torch.Tensor]:
    file, = out.glob("*model.safetensors")
    return load_file(file)


KINDS = {
    "lora": ["reward_model_type=lora"],
    "full": ["reward_model_type=full", "finetuning_type=full"],
    "classifier": ["reward_model_type=classifier", "reward_label=POSITIVE"],
    "api": ["reward_model_type=api"],
    "function": ["reward_model_type=function"],
    "rules": ["reward_model_type=rules"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_reward(kind: str, made: dict[str, str], tiny_base: Path, world: Path, tmp_path: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:
    """The logged reward is the mean of the answers' own; a trained reward model is where the value network begins."""
    out = tmp_path / "out"
    assert ppo(tiny_base, world, out, f"reward_model={made[kind]}", *KINDS[kind]) == 0
    rows, steps = metrics(out), told(out)
    assert [len(steps[number]) for number in (1, 2)] == [4, 4] and len(rows) == 2
    for number, row in enumerate(rows, 1):
        scores = [one["reward"] for one in steps[number]]
        assert row["reward"] == pytest.approx(sum(scores) / 4, rel=1e-5, abs=1e-6)
        assert row["kl"] == pytest.approx(sum(one["kl"] for one in steps[number]) / 4, rel=1e-4, abs=1e-5)
        assert row["length"] == sum(one["length"] for one in steps[number]) / 4
    assert len({one["reward"] for number in steps for one in steps[number]}) > 1
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4) and "starts as the policy" not in capsys.readouterr().err
    if kind == "function":
        for one in [*steps[1], *steps[2]]:
            letters = sum("a" <= c <= "z" for c in one["answer"])
            assert one["reward"] == pytest.approx(letters / max(len(one["answer"]), 1))
    if kind == "classifier":
        assert all(0 < one["reward"] < 1 for one in steps[1])
    if kind in ("lora", "full"):  # heads that are not zero explain something, or the opposite, from the first step on
        assert rows[0]["explained_variance"] != 0


def test_a_mixture_adds_up(made: dict[str, str], tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """0.5 lora + 2 function - 1 rules, answer by answer; each source is logged under its name."""
    kinds, out = ("lora", "function", "rules"), tmp_path / "out"
    assert ppo(tiny_base, world, out, f"reward_model_type={','.join(kinds)}", "reward_weights=0.5,2,-1",
               f"reward_model={','.join(made[kind] for kind in kinds)}") == 0
    for number, row in enumerate(metrics(out), 1):
        answers = told(out)[number]
        for one in answers:
            parts = one["rewards"]
            assert one["reward"] == pytest.approx(0.5 * parts["lora"] + 2 * parts["function"] - parts["rules"])
        for kind in kinds:
            mean = sum(one["rewards"][kind] for one in answers) / 4
            assert row[f"reward/{kind}"] == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_a_reward_model_of_another_base_is_refused(made: dict[str, str], world: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Before a step is taken, naming the adapter."""
    other = save_tiny(tmp_path / "other", "llama", CHATML, seed=9, hidden_size=48, head_dim=12)
    assert ppo(other, world, tmp_path / "out", f"reward_model={made['lora']}", "reward_model_type=lora") == 2
    assert made["lora"] in capsys.readouterr().err and not list((tmp_path / "out").glob("checkpoint-*"))


BROKEN = '''
from pathlib import Path

calls = 0


def score(completions):
    global calls
    calls += 1
    flag = Path(__file__).with_name("mended")
    if calls == 3 and not flag.exists():
        flag.touch()
        {fault}
    return [len(text) / 5 for text in completions]
'''


UNBROKEN = ["max_steps=4", "reward_model_type=function"]


@pytest.fixture(scope="module")
def whole(tiny_base: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nothing breaks."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mine.py").write_text(BROKEN.format(fault="pass"), encoding="utf-8")
    assert ppo(tiny_base, world, folder / "out", *UNBROKEN, f"reward_model={folder}/mine.py:score") == 0
    return folder / "out"


@pytest.mark.parametrize(("fault", "said"), [
    ("raise RuntimeError('out of memory of its own')", "out of memory of its own"),
    ("return [1.0]", "1 rewards for 4 answers"), ("return [float('nan')] * 4", "nan")], ids=["raises", "short", "nan"])
def test_a_mended_function_goes_on(fault: str, said: str, whole: Path, tiny_base: Path, world: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """It fails in step 3 of 4: exit code 2, step 2 is kept, and the same command ends with the bits of a whole run."""
    file, out = tmp_path / "mine.py", tmp_path / "broken"
    file.write_text(BROKEN.format(fault=fault), encoding="utf-8")
    assert ppo(tiny_base, world, out, *UNBROKEN, f"reward_model={file}:score") == 2
    assert said in capsys.readouterr().err
    assert (out / "checkpoint-2" / "manifest.json").is_file()
    assert ppo(tiny_base, world, out, *UNBROKEN, f"reward_model={file}:score") == 0
    left, right = weights(out), weights(whole)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert told(out) == told(whole)


def test_the_weight_of_the_kl_follows_what_is_logged(made: dict[str, str], tiny_base: Path, world: Path,
                                                     tmp_path: Path) -> None:
    """Each step's kl_coef is the last one's times 1 + clip(kl / target - 1, -0.2, 0.2) x answers / horizon."""
    out = tmp_path / "out"
    assert ppo(tiny_base, world, out, f"reward_model={made['function']}", "reward_model_type=function", "max_steps=6",
               "ppo_target=0.02", "ppo_kl_horizon=8", "learning_rate=5e-2") == 0
    rows, coefficient = metrics(out), 0.2
    for row in rows:
        assert row["kl_coef"] == pytest.approx(coefficient, rel=1e-4)
        coefficient *= 1 + min(max(row["kl"] / 0.02 - 1, -0.2), 0.2) * 4 / 8
    moves = [after["kl_coef"] > before["kl_coef"] for before, after in zip(rows, rows[1:], strict=False)]
    assert moves[0] is False and any(moves)


def test_buffered_batches_and_evaluation(made: dict[str, str], tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """A step samples two batches of three; an evaluation reports rewards of its own and writes no rollouts."""
    out = tmp_path / "out"
    assert ppo(tiny_base, world, out, f"reward_model={made['function']}", "reward_model_type=function",
               "ppo_buffer_size=2", "per_device_train_batch_size=3", "ppo_epochs=2", "eval_dataset=chat",
               "eval_strategy=steps", "eval_steps=1") == 0
    assert [len(told(out)[number]) for number in (1, 2)] == [6, 2]
    results = read_json(out / "eval_results.json")
    assert 0 <= results["eval_reward"] <= 1 and {"eval_kl", "eval_length", "eval_truncated"} <= results.keys()
    assert "eval_perplexity" not in results


def test_two_processes_with_unequal_shares(made: dict[str, str], tiny_base: Path, world: Path, tmp_path: Path) -> None:
    """Five prompts a pass in buffers of two, dealt to two processes, and an evaluation of one row: nobody waits."""
    file = tmp_path / "run.json"
    rows = read_json(world / "chat.json")
    (tmp_path / "one.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    file.write_text(json.dumps({
        "stage": "ppo", "model_name_or_path": str(tiny_base), "dataset": "chat", "dataset_dir": str(world),
        "max_samples": 5, "num_train_epochs": 2, "per_device_train_batch_size": 1, "ppo_buffer_size": 2,
        "ppo_epochs": 2, "max_new_tokens": 3, "eval_file": str(tmp_path / "one.json"), "eval_strategy": "epoch",
        "save_strategy": "no", "logging_steps": 1, "ddp_timeout": 60, "output_dir": str(tmp_path / "out"),
        "reward_model": made["function"], "reward_model_type": "function"}), encoding="utf-8")
    in_two_processes(file)
    assert len(metrics(tmp_path / "out")) == 4
    assert 0 <= read_json(tmp_path / "out" / "eval_results.json")["eval_reward"] <= 1
