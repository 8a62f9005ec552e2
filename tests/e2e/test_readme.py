"""What the READMEs tell a reader to type exists and runs; the Chinese one tells the same as the English one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from danlu.cli.main import VERBS
from danlu.core.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README_zh.md")


def commands(name: str) -> list[list[str]]:
    """Return the words of every danlu and make command of a README, comments left out."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (re.match(r"    (?:\.venv/bin/)?((?:danlu|make) [^#]*)", line) for line in lines)
    return [match.group(1).split() for match in found if match]


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb, make target and key of a command is known."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert len(commands(name)) >= 7
    for program, *words in commands(name):
        if program == "make":
            assert set(words) <= targets
            continue
        verb, keys = words[0], [word for word in words[1:] if not word.endswith(".yaml")]
        assert verb in VERBS
        if keys:
            resolve(None, keys, verb)


def test_both_languages_give_the_same_commands() -> None:
    assert commands(READMES[0]) == commands(READMES[1])


@pytest.mark.parametrize("name", READMES)
def test_the_example_file_trains(name: str, tiny_base: Path, world: Path, tmp_path: Path,
                                 danlu: Callable[..., int]) -> None:
    """The YAML of the README runs with nothing changed but model, data, output and length."""
    text = (ROOT / name).read_text(encoding="utf-8")
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.S).group(1))  # type: ignore[union-attr]
    out = tmp_path / "out"
    paths = {"model_name_or_path": str(tiny_base), "dataset": str(world / "chat.json"), "output_dir": str(out)}
    assert danlu("train", {**example, **paths}, "max_steps=1") == 0
    assert (out / "adapter_model.safetensors").exists()
