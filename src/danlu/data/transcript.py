"""Dialogue written as one text: `\n\nHuman: ... \n\nAssistant: ...`."""

import re

from danlu.core.records import Message
from danlu.data.row_values import RowProblem, kind_of
from danlu.data.turns import Turn

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def is_transcript(value: object) -> bool:
    """Say whether a value starts with a human's words and has an assistant's, be they empty."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def read_transcript(text: str, pointer: str) -> list[Turn]:
    """Return the turns of a transcript; the pointer of all is the text. Errors: RowProblem before the first speaker."""
    parts = SPEAKER.split("\n\n" + text.lstrip("\n"))
    if parts[0].strip() or len(parts) < 3:
        raise RowProblem(pointer, kind_of(text), 'a transcript that starts with "\\n\\nHuman: "')
    return [Turn(Message("user" if speaker == "Human" else "assistant", words.strip()), pointer)
            for speaker, words in zip(parts[1::2], parts[2::2], strict=True)]


def read_prompt_text(text: str, pointer: str) -> list[Turn]:
    """Return the turns of a prompt: those of a transcript that waits for its answer, else one user turn."""
    if is_transcript(text) and text.rstrip().endswith("Assistant:"):
        return read_transcript(text, pointer)[:-1]
    return [Turn(Message("user", text), pointer)]
