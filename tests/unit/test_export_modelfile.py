"""Ollama's Modelfile: what Go would render equals the chat template, or no file is written."""

from pathlib import Path

import pytest

from danlu.export.modelfile import read_template, write_modelfile
from danlu.templates import TEMPLATES
from tests.tiny import CHATML, tiny_tokenizer


def test_chatml_by_hand(tmp_path: Path) -> None:
    """Every piece of ChatML is known; <|im_end|> is id 4."""
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    assert write_modelfile(tmp_path, tokenizer, (4,), 256)
    assert (tmp_path / "Modelfile").read_text() == (
        'FROM .\n\nTEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        '<|im_start|>assistant\n"""\n\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 256\n')


@pytest.mark.parametrize("name", ["default", "qwen", "vicuna", "llama3", "alpaca", "phi3", "glm4", "llama2", "gemma"])
def test_named_templates_render_alike_or_are_left_out(name: str) -> None:
    """Oracle: apply_chat_template on a dialogue that the pieces were not read from."""
    tokenizer = tiny_tokenizer()
    TEMPLATES[name].prepare_tokenizer(tokenizer)
    pieces = read_template(tokenizer)
    rows = [{"role": role, "content": text} for role, text in [
        ("user", "你好"), ("assistant", "hello"), ("user", "why"), ("assistant", "so"), ("user", "天空是什么颜色")]]
    if name in ("default", "qwen", "vicuna", "llama3", "phi3"):
        assert pieces is not None
    if pieces is not None:
        for dialogue in (rows, [{"role": "system", "content": "brief"}, *rows]):
            expected = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
            assert pieces.render(dialogue) == expected.removeprefix("<s>")


def test_templates_beyond_go_give_no_file(tmp_path: Path) -> None:
    """Llama 2 puts the system message inside the first user turn."""
    tokenizer = tiny_tokenizer()
    TEMPLATES["llama2"].prepare_tokenizer(tokenizer)
    assert not write_modelfile(tmp_path, tokenizer, (2,), None)
    assert not list(tmp_path.iterdir())
