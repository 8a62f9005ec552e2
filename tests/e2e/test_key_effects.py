"""Every key acts: two tiny runs that differ in that key alone differ in what the key is for."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.cli.main import main
from danlu.core import console
from danlu.core.errors import UserError
from danlu.run_config import load_run_config
from tests.conftest import DIALOGUES
from tests.key_effects import BASES, EFFECTS, Effect, Values
from tests.tiny import CHATML, save_tiny, tiny_tokenizer

TRAINING = {"model_name_or_path": "{bases}/base", "dataset_dir": "{world}", "output_dir": "{run}/out", "max_steps": 4,
            "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no",
            "disable_tqdm": True}
TESTING = {"model_name_or_path": "{bases}/base", "dataset_dir": "{world}"}
REWARDS = """
def letters(completions, **columns):
    return [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]


def spaces(completions, **columns):
    return [float(len(text)) for text in completions]
"""
RULES = "- regex: \"[a-m]\"\n"
NOISE = re.compile(r"runtime|per_second|elapsed|remaining|total_flos")
Print = dict[str, Any]


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Return alpaca rows."""
    return [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]


def turns(*contents: str) -> dict[str, Any]:
    """Return one sharegpt dialogue of alternating turns."""
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(contents)]}


SETS: dict[str, list[Any]] = {
    "chat": rows(*DIALOGUES),
    "more": rows(("is the cat warm", "the cat is warm"), ("什么 颜色", "蓝色"), ("a mat", "sat"), ("rain", "is wet")),
    "long": rows(*((f"what is {'the sky ' * n}", "blue and warm " * n) for n in range(1, 7))),
    "turns": [turns("what is the sky", "blue", "and the sun", "warm"), turns("你好", "你好", "猫", "是 蓝色")] * 2,
    "thoughts": [turns("the cat", "<think>\nwarm\n</think>\n\nsat", "the sun", "<think>\nsky\n</think>\n\nwarm")] * 4,
    "tools": [{"tools": json.dumps([{"name": "sky", "parameters": {}}]), "conversations": [
        {"from": "human", "value": question}, {"from": "function_call", "value": '{"name": "sky", "arguments": {}}'},
        {"from": "observation", "value": "blue"}, {"from": "gpt", "value": answer}]} for question, answer in DIALOGUES],
    "prose": [{"text": f"{question} {answer} " * 3} for question, answer in DIALOGUES],
    "control": [{"text": f"{question} <|im_end|> {answer}"} for question, answer in DIALOGUES],
    "odd": [{"text": "the cat sat on a mat", "body": f"{question} {answer} " * 2} for question, answer in DIALOGUES],
    "pairs": [{"instruction": question, "chosen": answer, "rejected": f"{answer} {question}"}
              for question, answer in DIALOGUES],
    "verdicts": [{"instruction": question, "output": answer, "kto_tag": number % 2 == 0}
                 for number, (question, answer) in enumerate(DIALOGUES)],
    "bad": [*rows(*DIALOGUES), {"instruction": "a question without an answer", "output": 7}],
}


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The test world: data sets, base models, adapters, and a cache as the hub would have left it."""
    root = tmp_path_factory.mktemp("keys")
    before = os.environ.get("DANLU_CACHE")
    os.environ["DANLU_CACHE"] = str(root / "cache")
    write_sets(root / "world", SETS)
    write_sets(root / "world" / "second", {"chat": SETS["more"]})
    (root / "world" / "reward.py").write_text(REWARDS, encoding="utf-8")
    (root / "world" / "rules.yaml").write_text(RULES, encoding="utf-8")
    (root / "world" / "described.yaml").write_text('"<new>": the cat\n"<old>": blue sky\n', encoding="utf-8")
    write_bases(root / "bases")
    for cached, names in (("first", ("base", "other")), ("second", ("other", "base"))):
        write_hub(root / "hub" / cached, *(root / "bases" / name for name in names))
    found = {name: str(root / name) for name in ("world", "bases", "adapters", "hub")}
    for name, values in (("one", {}), ("group/one", {"seed": 3, "learning_rate": 5e-2})):
        done = train({**TRAINING, **BASES["sft"], **values, "output_dir": f"{root}/adapters/{name}"}, found, root)
        assert done["outcome"] == "done", done["outcome"]
    yield {**found, "root": str(root)}
    if before is None:
        del os.environ["DANLU_CACHE"]
    else:
        os.environ["DANLU_CACHE"] = before


def write_sets(folder: Path, sets: dict[str, list[Any]]) -> None:
    """Write each set as JSON lines, and the registry that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    registry: dict[str, Any] = {}
    for name, content in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        registry[name] = {"file_name": f"{name}.jsonl"}
        if "chosen" in content[0]:
            registry[name] |= {"ranking": True, "columns": {
                "prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
        if "kto_tag" in content[0]:
            registry[name]["columns"] = {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}
        if "conversations" in content[0]:
            registry[name] |= {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
    (folder / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")


def write_bases(folder: Path) -> None:
    """Write the base models: two of different weights, one with too few rows, one of experts, one with own code."""
    save_tiny(folder / "base", "llama", CHATML)
    save_tiny(folder / "other", "llama", CHATML, seed=5)
    save_tiny(folder / "short", "llama", CHATML, vocab_size=300)
    save_experts(folder / "experts")
    own = save_tiny(folder / "own_code", "llama", CHATML)
    settings = json.loads((own / "config.json").read_text())
    settings |= {"model_type": "own", "architectures": ["Own"],
                 "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (own / "config.json").write_text(json.dumps(settings))
    (own / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass OwnConfig(LlamaConfig):\n"
        '    model_type = "own"\n\n\nclass Own(LlamaForCausalLM):\n    config_class = OwnConfig\n')


def save_experts(folder: Path) -> None:
    """Write a tiny mixture-of-experts model."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0)).save_pretrained(folder)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(folder)


def write_hub(folder: Path, main_model: Path, other_model: Path) -> None:
    """Lay two models out as the hub's cache does: the branches `main` and `other` of tiny/base."""
    home = folder / "models--tiny--base"
    for branch, source, commit in (("main", main_model, "a" * 40), ("other", other_model, "b" * 40)):
        shutil.copytree(source, home / "snapshots" / commit)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit)


def filled(values: Values, places: dict[str, str]) -> list[str]:
    """Return `key=value` words with the names of places filled in."""
    words = []
    for key, value in values.items():
        if value is not None:
            for name, path in places.items():
                value = value.replace(f"{{{name}}}", path) if isinstance(value, str) else value
            words.append(f"{key}={json.dumps(value) if isinstance(value, bool) else value}")
    return words


def train(values: Values, places: dict[str, str], folder: Path) -> Print:
    """Train in this process and return what can be seen of the run."""
    from danlu.recipe import train as run

    console.forget_notices()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        config = load_run_config(None, filled(values, {**places, "run": str(folder)}), "train")
        run(config)
        outcome = "done"
    except UserError as error:
        outcome = str(error).replace(str(folder), "RUN")
    except Exception as error:
        if "torch_compile" not in str(values):
            raise
        outcome = type(error).__name__
    found = look(folder)
    found["outcome"] = outcome
    found["flags"] = (torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32)
    found["compiled"] = torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def look(folder: Path) -> Print:
    """Return what a run left in its folder."""
    out = folder / "out"
    log = [json.loads(line) for line in lines(out / "trainer_log.jsonl")]
    results = json.loads((out / "all_results.json").read_text()) if (out / "all_results.json").exists() else {}
    weights = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}
    described = {path.name: path.read_text("utf-8") for path in sorted(out.glob("*config.json"))}
    tokenizer = [sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("tokenizer.json"))]
    files = {re.sub(r"\d{6,}.*", "N", str(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file()}
    return {
        "losses": [row["loss"] for row in log if "loss" in row], "rates": [row["lr"] for row in log if "lr" in row],
        "log": [(row["current_steps"], sorted(row)) for row in log],
        "evaluations": [(row["current_steps"], row["eval_loss"]) for row in log if row.get("eval_loss") is not None],
        "results": {name: value for name, value in results.items() if not NOISE.search(name)} | {
            name: "a time" for name in results if NOISE.search(name)},
        "weights": weights, "model": (weights, described, tokenizer), "files": files,
        "answers": lines(out / "generated_predictions.jsonl"),
    }


def lines(path: Path) -> list[str]:
    """Return the lines of a file that may be absent."""
    return path.read_text("utf-8").splitlines() if path.exists() else []


def spoken(text: str, folder: Path) -> list[str]:
    """Return what was said, without times, and without the notice that a key has no effect."""
    kept = [line for line in text.replace(str(folder), "RUN").splitlines()
            if "without effect" not in line and not line.startswith("results:")]
    return [re.sub(r"\d[\d,.]* tok/s.*|\d+:\d\d:\d\d|in [\d.]+ s", "", line) for line in kept]


def words_of(verb: str, values: Values, places: dict[str, str], folder: Path,
             capsys: pytest.CaptureFixture[str]) -> Print:
    """Run a verb and return its exit code, what it printed, and the files it left."""
    console.forget_notices()
    code = main([verb, *filled(values, {**places, "run": str(folder)})])
    said = capsys.readouterr()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {verb: (code, said.out.replace(str(folder), "RUN"), files)}


def tracked(values: Values, places: dict[str, str], folder: Path) -> Print:
    """Return what the trackers would be told."""
    from danlu.engine import trackers

    engine = load_run_config(None, filled(values, {**places, "run": str(folder)}), "train").engine
    return {"trackers": (engine.project, trackers.settings(engine, ["wandb", "swanlab", "mlflow"], folder))}


@pytest.fixture(scope="session")
def numbered() -> Callable[[], int]:
    """Count the runs, so that each has a folder of its own."""
    count = iter(range(10**6))
    return lambda: next(count)


@pytest.fixture
def seen(places: dict[str, str], numbered: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an effect's base or variant and return what can be seen; `seen(effect, with_key)`."""

    def run(effect: Effect, with_key: bool) -> Print:
        folder = Path(places["root"]) / "runs" / str(numbered())
        folder.mkdir(parents=True)
        own = BASES[effect.base] | effect.both | (effect.given if with_key else {})
        if effect.seen in ("eval", "export"):
            common = TESTING if effect.seen == "eval" else {"model_name_or_path": TESTING["model_name_or_path"]}
            return words_of(effect.seen, common | own, places, folder, capsys)
        values = TRAINING | own
        if effect.seen == "trackers":
            return tracked(values, places, folder)
        if effect.seen == "plan":
            return words_of("plan", values, places, folder, capsys)
        if effect.prior is not None:
            done = train(TRAINING | BASES[effect.base] | effect.prior, places, folder)
            assert done["outcome"] == "done", done["outcome"]
        capsys.readouterr()
        found = train(values, places, folder)
        said = spoken(capsys.readouterr().err, folder)
        return found | {"console": said, "cache": [line for line in said if "encoded before" in line]}

    return run


BASE_RUNS: dict[str, Print] = {}


@pytest.mark.parametrize("key", [
    pytest.param(name, marks=[pytest.mark.slow] if effect.slow else []) for name, effect in EFFECTS.items()])
def test_the_key_changes_the_run(key: str, seen: Any) -> None:
    """The aspect named in the table differs between the run with the key and the one without."""
    effect = EFFECTS[key]
    kind = effect.seen if effect.seen in ("eval", "export", "plan", "trackers") else "train"
    shared = f"{kind} {effect.base} {effect.both} {effect.prior}"
    if shared not in BASE_RUNS or effect.prior is not None:
        BASE_RUNS[shared] = seen(effect, False)
    without, with_key = BASE_RUNS[shared], seen(effect, True)
    assert "outcome" not in with_key or effect.seen == "outcome" or with_key["outcome"] == "done", with_key["outcome"]
    assert "outcome" not in without or effect.seen == "outcome" or without["outcome"] == "done", without["outcome"]
    assert with_key[effect.seen] != without[effect.seen]


def test_a_key_that_is_not_given_changes_nothing(seen: Any) -> None:
    """The same run twice looks the same in every aspect, so that a difference means the key."""
    effect = Effect({}, "losses", "evaluated", {"save_strategy": "steps", "save_steps": 2, "plot_loss": True})
    first, second = seen(effect, False), seen(effect, True)
    assert first.keys() == second.keys()
    for aspect in first:
        if aspect != "cache":
            assert first[aspect] == second[aspect], aspect
