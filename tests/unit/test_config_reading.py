"""Configuration files and command lines: what is read, and what is told when it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ConfigError
from danlu.core.resolve import Resolved, resolve


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Resolve a file with this text and command line: `read(text, *overrides, name="run.yaml")`."""

    def run(text: str, *overrides: str, name: str = "run.yaml", verb: str = "train") -> Resolved:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return resolve(path, overrides, verb)

    return run


def line(**values: Any) -> dict[str, Any]:
    """Resolve a command line of `--key value` words only."""
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return resolve(None, words, "train").values


# YAML 1.1 reads these as something else than their author means.
@pytest.mark.parametrize(("text", "key", "value"), [
    ("learning_rate: 1e-4", "learning_rate", 1e-4),
    ("learning_rate: 5E-5", "learning_rate", 5e-5),
    ("learning_rate: '1e-4'", "learning_rate", 1e-4),
    ("eval_strategy: no", "eval_strategy", "no"),
    ('eval_strategy: "no"', "eval_strategy", "no"),
    ("run_name: 2024-01-02", "run_name", "2024-01-02"),
    ("run_name: 007", "run_name", "007"),
    ("run_name: yes", "run_name", "yes"),
    ("max_steps: 1e3", "max_steps", 1000),
    ("num_train_epochs: 3", "num_train_epochs", 3),
    ("lora_rank: 16.0", "lora_rank", 16),
    ("template:", "template", None),
    ("template: null", "template", None),
    ("plot_loss: yes", "plot_loss", True),
    ("plot_loss: 'false'", "plot_loss", False),
    ("dataset: a, b ,c", "dataset", ["a", "b", "c"]),
    ("dataset: [a, b]", "dataset", ["a", "b"]),
    ("dataset:\n  - a\n  - b", "dataset", ["a", "b"]),
    ("interleave_probs: 0.3,0.7", "interleave_probs", [0.3, 0.7]),
    ("interleave_probs: [0.3, 0.7]", "interleave_probs", [0.3, 0.7]),
    ("lr_scheduler_kwargs: {min_lr: 0.1}", "lr_scheduler_kwargs", {"min_lr": 0.1}),
    ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
    ("resume_from_checkpoint: out/checkpoint-3", "resume_from_checkpoint", "out/checkpoint-3"),
    ("val_size: 200", "val_size", 200),
    ("report_to: none", "report_to", ["none"]),
    ("quantization_bit: 4", "quantization_bit", 4),
    ("a_b: &x 1\nseed: 3".replace("a_b", "data_seed"), "seed", 3),
])
def test_values_as_their_author_means_them(read: Any, text: str, key: str, value: Any) -> None:
    found = read(text).values[key]
    assert found == value and isinstance(found, type(value))


@pytest.mark.parametrize(("words", "key", "value"), [
    (["--do_train"], "do_train", True),
    (["--do_train", "--stage", "sft"], "do_train", True),
    (["--do_train", "false"], "do_train", False),
    (["--no_double_quantization"], "double_quantization", False),
    (["--max-steps", "-1"], "max_steps", -1),
    (["--max_steps=7"], "max_steps", 7),
    (["max_steps=7"], "max_steps", 7),
    (["lora-rank=7"], "lora_rank", 7),
    (["--lora_target", "q_proj,v_proj"], "lora_target", ["q_proj", "v_proj"]),
    (["--lora_target", "q_proj", "v_proj", "--fp16"], "lora_target", ["q_proj", "v_proj"]),
    (["--report_to", "wandb", "tensorboard", "seed=1"], "report_to", ["wandb", "tensorboard"]),
    (["--optim_args", "rank=4"], "optim_args", "rank=4"),
    (["--lr_scheduler_kwargs", '{"min_lr": 0.1}'], "lr_scheduler_kwargs", {"min_lr": 0.1}),
    (["template=null"], "template", None),
    (["--plot_loss", "seed=1"], "plot_loss", True),
    (["default_system=a = b"], "default_system", "a = b"),
])
def test_command_line(words: list[str], key: str, value: Any) -> None:
    assert resolve(None, words, "train").values[key] == value


def test_command_line_wins_and_origins_are_kept(read: Any, tmp_path: Path) -> None:
    resolved = read("# a comment\nseed: 1\nmax_steps: 5\n", "seed=2", "--lora-rank", "4")
    assert resolved.values == {"seed": 2, "max_steps": 5, "lora_rank": 4}
    assert resolved.origins == {
        "seed": "command line", "max_steps": f"{tmp_path}/run.yaml:3", "lora_rank": "command line"}


def test_json_has_lines_too(read: Any, tmp_path: Path) -> None:
    text = json.dumps({"seed": 1, "dataset": ["a", "b"], "max_steps": 5}, indent="\t").replace("\n", "\r\n")
    resolved = read(text, name="run.json")
    assert resolved.values == {"seed": 1, "dataset": ["a", "b"], "max_steps": 5}
    assert resolved.origins["max_steps"] == f"{tmp_path}/run.json:7"


@pytest.mark.parametrize(("name", "text", "parts"), [
    ("run.yaml", "seed: 1\n  max_steps: 2\n", ["run.yaml:2", "broken YAML"]),
    ("run.yaml", "seed: [1, 2\n", ["run.yaml:2", "broken YAML"]),
    ("run.yaml", "seed: 1\n\tmax_steps: 2\n", ["run.yaml:2:1", "tab"]),
    ("run.yaml", "- a\n- b\n", ["run.yaml:1", "key: value"]),
    ("run.yaml", "just words", ["run.yaml:1", "key: value"]),
    ("run.yaml", "seed: 1\n---\nseed: 2\n", ["run.yaml:2", "document"]),
    ("run.yaml", "seed: !!python/object:os.system 1\n", ["run.yaml:1"]),
    ("run.yaml", "seed: 1\nmax_steps: 2\nseed: 3\n", ["run.yaml:3", "twice", "run.yaml:1"]),
    ("run.json", '{\n "seed": 1\n "max_steps": 2}', ["run.json:3:2", "broken JSON"]),
    ("run.json", '{"seed": 1, "seed": 2}', ["run.json:1", "twice"]),
    ("run.json", "[1]", ["run.json:1", "object"]),
    ("run.toml", "seed = 1", ["run.toml", ".yaml"]),
])
def test_broken_files(read: Any, name: str, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, name=name)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_missing_file_names_the_closest(tmp_path: Path) -> None:
    (tmp_path / "train_sft.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"no such file\n.*train_sft\.yaml\?"):
        resolve(tmp_path / "train_stf.yaml", [], "train")
    with pytest.raises(ConfigError, match="is a folder"):
        resolve(tmp_path, [], "train")


def test_empty_file_and_utf8(read: Any) -> None:
    assert read("").values == {}
    assert read("# nothing\n").values == {}
    assert read("\ufeffdefault_system: 你好\n").values == {"default_system": "你好"}


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("default_system: 你好".encode("gb18030"))
    with pytest.raises(ConfigError, match="UTF-8"):
        resolve(tmp_path / "run.yaml", [], "train")


@pytest.mark.parametrize(("text", "parts"), [
    ("lora_rnk: 8", ['unknown key "lora_rnk"', 'did you mean "lora_rank"?', "run.yaml:1"]),
    ("lora_rank: eight", ["a whole number, at least 1", "eight"]),
    ("lora_rank: 0", ["at least 1", "found 0"]),
    ("lora_rank: 2.5", ["a whole number", "2.5"]),
    ("lora_rank: true", ["a whole number", "true"]),
    ("lora_rank:", ["a whole number", "nothing"]),
    ("lora_rank: [8]", ["a whole number", "[8]"]),
    ("learning_rate: .nan", ["a number", ".nan"]),
    ("learning_rate: -1", ["at least 0"]),
    ("lora_dropout: 1", ["below 1"]),
    ("optim: adamw_troch", ["one of", 'did you mean "adamw_torch"?']),
    ("optim: lomo", ["only the optimisers of torch and bitsandbytes"]),
    ("plot_loss: perhaps", ["true or false", "perhaps"]),
    ("plot_loss: 3", ["true or false", "3"]),
    ("interleave_probs: 0.3,x", ["numbers with commas", "x"]),
    ("dataset: {a: 1}", ["a comma list", "map"]),
    ("lr_scheduler_kwargs: linear", ["a map", "linear"]),
    ("quantization_method: hqq", ["HQQ is out of scope"]),
    ("finetuning_type: oft", ["OFT"]),
    ("buffer_size: 0", ["at least 1"]),
    ("compute_dtype: float32", ["derives it; remove the key"]),
    ("use_galore: true", ["GaLore is out of scope"]),
    ("image_max_pixels: 5", ["images, video and audio are out of scope"]),
])
def test_wrong_keys_and_values(read: Any, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_all_mistakes_at_once(read: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read("lora_rnk: 8\nstage: sfft\nuse_badam: true\ncutoff_len: x\n", "lora_alpah=3")
    for part in ("run.yaml:1", "run.yaml:2", "run.yaml:3", "run.yaml:4", "command line"):
        assert part in str(caught.value)


@pytest.mark.parametrize("words", [["8"], ["--seed", "1", "2"], ["-seed", "1"], ["--"]])
def test_words_that_belong_to_no_key(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="belongs to no key"):
        resolve(None, words, "train")


def test_flag_without_value() -> None:
    with pytest.raises(ConfigError, match="--lora_rank VALUE"):
        resolve(None, ["--lora_rank", "--do_train"], "train")


def test_given_twice_on_the_command_line() -> None:
    resolved = resolve(None, ["seed=1", "--seed", "2"], "train")
    assert resolved.values == {"seed": 2}
    assert "given twice on the command line, the last value counts: seed" in resolved.notices
