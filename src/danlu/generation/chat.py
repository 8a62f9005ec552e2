"""A conversation with a model: history, system prompt, and what leaves when the context is full. Prints nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from danlu.core.console import say
from danlu.core.errors import UserError
from danlu.core.records import Message
from danlu.generation.config import GenerationConfig
from danlu.generation.load import Loaded

THINK_START, THINK_END = "<think>", "</think>"


class ChatSession:
    """Turns of one dialogue. Prompts are written by the template the model was trained with."""

    def __init__(
        self, loaded: Loaded, settings: GenerationConfig, *, system: str | None = None,
        tools: tuple[dict[str, Any], ...] = (), enable_thinking: bool | None = None, seed: int = 0,
        on_notice: Callable[[str], None] = say,
    ) -> None:
        self.loaded, self.settings, self.turns = loaded, settings, list[Message]()
        self._system, self._tools, self._enable_thinking = system, tools, enable_thinking
        self._seed, self._answers, self._on_notice = seed, 0, on_notice

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces. What was said until then is kept when the reader stops early."""
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()  # asked, but stopped before the first word of an answer
        self.turns.append(Message("user", text))
        return self._answer()

    def regenerate(self) -> Iterator[str]:
        """Forget the last answer and yield another to the same question.

        Raises UserError when nothing was asked yet.
        """
        if not self.turns:
            raise UserError("there is no answer to regenerate", fix="ask something first")
        if self.turns[-1].role == "assistant":
            self.turns.pop()
        return self.ask(self.turns[-1].content)

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()

    def set_system(self, text: str) -> None:
        """Begin anew under another system prompt; an empty one removes it."""
        self._system = text or None
        self.clear()

    def _answer(self) -> Iterator[str]:
        pieces: list[str] = []
        seed, self._answers = self._seed + self._answers, self._answers + 1
        try:
            for piece in self.loaded.generator.stream(self._prompt(), self.settings, seed=seed):
                pieces.append(piece)
                yield piece
        except UserError:
            self.turns.pop()
            raise
        except (GeneratorExit, KeyboardInterrupt):
            self.turns.append(as_message("".join(pieces)))
            raise
        self.turns.append(as_message("".join(pieces)))

    def _prompt(self) -> list[int]:
        """Return the prompt's ids after the oldest turns have left to make room for an answer."""
        ids, left, context = self._encode(), 0, self.loaded.generator.context
        while context is not None and len(self.turns) > 2 and len(ids) + self._reserve(context) > context:
            del self.turns[:2]
            left, ids = left + 2, self._encode()
        if left:
            self._on_notice(f"notice: the {left} oldest messages left the history: the context is {context} tokens")
        return ids

    def _reserve(self, context: int) -> int:
        """Return the tokens kept free for an answer: what was asked for, but no more than a quarter of the context."""
        return min(self.settings.max_new_tokens or context, context // 4)

    def _encode(self) -> list[int]:
        system = [Message("system", self._system)] if self._system else []
        return self.loaded.template.encode_prompt(
            [*system, *self.turns], self.loaded.tokenizer, tools=self._tools, enable_thinking=self._enable_thinking)


def as_message(answer: str) -> Message:
    """Return an answer as a turn, what the model thought before it kept apart."""
    thought, mark, said = answer.partition(THINK_END)
    if not mark:
        return Message("assistant", answer)
    message = Message("assistant", said.lstrip("\n"))
    return replace(message, reasoning=thought.removeprefix(THINK_START).strip())
