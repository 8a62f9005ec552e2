"""The six kinds of record that data formats produce and stages consume. Knows nothing of tokens."""

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read: file or hub id, and 1-based row (line for line-based files)."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` scales its loss and 0 switches it off; None leaves it to the stage's default."""

    role: Role
    content: str
    weight: float | None = None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Raw prose for continued pre-training, or a plain text row for supervised fine-tuning."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Conversation:
    """Alternating turns; a leading system message is optional. `tools` holds JSON tool definitions."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with two or more answers, best first; `margin` is the lead of the better, where the data say it."""

    prompt: tuple[Message, ...]
    answers: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """One dialogue with a thumbs up or down on its last answer."""

    messages: tuple[Message, ...]
    desirable: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class Graded:
    """One prompt with one or more answers, the first `num_good` of them good and the others bad."""

    prompt: tuple[Message, ...]
    answers: tuple[Message, ...]
    num_good: int
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages to be answered; `extra` carries what a reward needs, a reference answer for instance."""

    messages: tuple[Message, ...]
    origin: Origin
    extra: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()


Record = Text | Conversation | Preference | Feedback | Graded | Prompt
