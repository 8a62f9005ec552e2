"""Ollama's Modelfile: the chat template in Go's template language, and the words at which an answer ends.

The pieces are read off the saved chat template by rendering marked dialogues, and put together again as Go would; only
a Modelfile that renders the probes letter by letter is written. Knows nothing of weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

SYSTEM, USER, ANSWER, AGAIN = "⟪system⟫", "⟪user⟫", "⟪answer⟫", "⟪again⟫"
Rows = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A chat format as what stands around each kind of message; `opening` only where there is no system message."""

    opening: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def text(self) -> str:
        """Return the template in Go's language, as Ollama fills it."""
        before, after = self.system
        return (
            "{{ if .System }}" + before + "{{ .System }}" + after + "{{ else }}" + self.opening + "{{ end }}"
            '{{ range .Messages }}{{ if eq .Role "user" }}' + "{{ .Content }}".join(self.user)
            + '{{ else if eq .Role "assistant" }}' + "{{ .Content }}".join(self.assistant) + "{{ end }}{{ end }}"
            + self.generation)

    def render(self, rows: Rows) -> str:
        """Return what Ollama sends to the model for these messages."""
        system = "".join(row["content"] for row in rows if row["role"] == "system")
        head = system.join(self.system) if system else self.opening
        around = {"user": self.user, "assistant": self.assistant}
        return head + "".join(
            row["content"].join(around[row["role"]]) for row in rows if row["role"] in around) + self.generation


def read_template(tokenizer: PreTrainedTokenizerBase) -> GoTemplate | None:
    """Return the tokenizer's chat template as Go pieces, or None when it is not as simple as that.

    The start token is left out: Ollama's runner adds it.
    """
    ask, told = [_row("user", USER)], [_row("user", USER), _row("assistant", ANSWER)]
    try:
        plain, prompt = _render(tokenizer, ask, False), _render(tokenizer, ask, True)
        answered = _render(tokenizer, told, False)
        again = _render(tokenizer, [*told, _row("user", AGAIN)], True)
        with_system = _render(tokenizer, [_row("system", SYSTEM), *ask], True)
        pieces = _pieces(plain, prompt, answered, again, with_system)
    except (TemplateError, ValueError):
        return None
    probes: tuple[Rows, ...] = (ask, [*told, _row("user", AGAIN)], [_row("system", SYSTEM), *told, _row("user", AGAIN)])
    same = all(pieces.render(rows) == _render(tokenizer, rows, True) for rows in probes)
    is_writable = not any(mark in pieces.render(probes[2]) for mark in ("{{", "}}", '"""'))
    return pieces if same and is_writable else None


def write_modelfile(
    folder: Path, tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...], context: int | None,
) -> bool:
    """Write `Modelfile` for `ollama create NAME -f Modelfile`; return False when the template is beyond it."""
    template = read_template(tokenizer)
    if template is None:
        return False
    stops: list[Any] = tokenizer.convert_ids_to_tokens(list(stop_ids))
    lines = ["FROM .", "", f'TEMPLATE """{template.text()}"""', "", *(f'PARAMETER stop "{stop}"' for stop in stops)]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {context}")
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def _pieces(plain: str, prompt: str, answered: str, again: str, with_system: str) -> GoTemplate:
    """Cut the rendered dialogues at their marks. Raises ValueError where they do not fit together."""
    head, user_end = plain.split(USER)
    generation = _after(prompt, plain)
    assistant_start, assistant_end = _after(answered, plain).split(ANSWER)
    user_start = _after(again, answered).split(AGAIN)[0]
    opening = _before(head, user_start)
    system_start, rest = with_system.split(SYSTEM)
    system_end = _before(rest.split(USER)[0], user_start)
    return GoTemplate(opening, (system_start, system_end), (user_start, user_end),
                      (assistant_start, assistant_end), generation)


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(f"{text!r} does not begin with {start!r}")
    return text[len(start) :]


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(f"{text!r} does not end with {end!r}")
    return text[: len(text) - len(end)]


def _row(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: PreTrainedTokenizerBase, rows: Rows, is_prompt: bool) -> str:
    text = str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=is_prompt))
    return text.removeprefix(tokenizer.bos_token or "")
