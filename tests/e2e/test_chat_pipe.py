"""`danlu chat` through a pipe, as a script or a test would use it, on a model that learned two answers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.cli.main import main
from danlu.core.records import Message
from danlu.templates import resolve
from tests.tiny import CHATML, save_tiny

ANSWERS = {"what colour is the sky": "blue", "天空是什么颜色": "蓝色"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random base, and the same after a plain torch loop over two questions with their answers."""
    root = tmp_path_factory.mktemp("talk")
    base = save_tiny(root / "base", "llama", CHATML)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    template = resolve(None, tokenizer)
    rows = []
    for question, answer in ANSWERS.items():
        prompt = template.encode_prompt([Message("user", question)], tokenizer)
        taught = [*tokenizer.encode(answer, add_special_tokens=False), *template.stop_token_ids(tokenizer)]
        rows.append((prompt, taught))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = sum(model(torch.tensor([p + a]), labels=torch.tensor([[-100] * len(p) + a])).loss for p, a in rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    model.save_pretrained(root / "taught")
    tokenizer.save_pretrained(root / "taught")
    return {"base": base, "taught": root / "taught"}


def chat(typed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "danlu", "chat", *arguments, "--do_sample", "false", "--max_new_tokens", "16"],
        input=typed, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def test_answers_commands_and_exit(folders: dict[str, Path]) -> None:
    """Each question is asked in a fresh conversation, as it was taught; nothing after /exit is answered."""
    english, chinese = ANSWERS
    done = chat(f"{english}\n/clear\n{chinese}\n/nonsense\nclear\n{english}\n/regenerate\n/exit\n{english}\n",
                "--model_name_or_path", str(folders["taught"]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["blue", "蓝色", "blue", "blue"]
    assert "no such command" in done.stderr


def test_end_of_input_leaves_and_compare_answers_side_by_side(folders: dict[str, Path]) -> None:
    done = chat("天空是什么颜色\n", "--compare", str(folders["base"]), str(folders["taught"]))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.rstrip().rsplit("\n", 1)
    assert first.startswith("[base] ") and "蓝色" not in first and second == "[taught] 蓝色"


def test_a_wrong_folder_is_an_error_of_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model_name_or_path", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
