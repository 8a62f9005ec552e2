"""From dialogues to questions: everything before the last answer is the prompt, that answer the reference."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from danlu.core.console import say, warn
from danlu.core.errors import DataError
from danlu.core.records import Conversation
from danlu.data.loader import Records
from danlu.generation.base import Completion, Generator
from danlu.generation.config import GenerationConfig
from danlu.generation.detokenize import decode
from danlu.templates.base import ChatTemplate, with_default_system

GROUP_COLUMN = "lang"
CHUNK = 4  # batches answered before their predictions are written: enough to sort by length, little to lose


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as token ids, the reference answer, and the group it is counted in ("" for none)."""

    prompt: tuple[int, ...]
    label: str
    group: str
    origin: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with what the model said."""

    question: Question
    completion: Completion


def questions_of(
    records: Sequence[Conversation], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, *,
    default_system: str | None = None, enable_thinking: bool | None = None, context: int | None = None,
) -> list[Question]:
    """Return one question for each dialogue that ends with an answer.

    Dialogues without an answer at the end and prompts longer than `context` are left out, and counted aloud.
    Raises DataError when none is left.
    """
    groups, questions, without, too_long = group_names(records), [], 0, 0
    for record, group in zip(records, groups, strict=True):
        if not record.messages or record.messages[-1].role != "assistant":
            without += 1
            continue
        messages = with_default_system(record.messages[:-1], default_system)
        ids = template.encode_prompt(messages, tokenizer, tools=record.tools, enable_thinking=enable_thinking)
        if context is not None and len(ids) >= context:
            too_long += 1
            continue
        questions.append(Question(tuple(ids), record.messages[-1].content, group, str(record.origin)))
    if without:
        warn(f"{without} of {len(records)} dialogues do not end with an answer and are left out")
    if too_long:
        warn(f"{too_long} of {len(records)} prompts do not fit the context of {context} tokens and are left out")
    if not questions:
        raise DataError("no question is left to answer", fix="name a data set whose dialogues end with an answer")
    return questions


def group_names(records: Sequence[Conversation]) -> list[str]:
    """Return the group of each record: its column `lang`, else its data set when there are several, else ""."""
    if not isinstance(records, Records):
        return [""] * len(records)
    names = records.names if len(records.names) > 1 else ("",) * len(records.names)
    groups = []
    for owner, row in records.places.tolist():
        part = records.parts[owner]
        files, _, places = part.kept
        value = part.files[files[row]].read(places[row])
        column = value.get(GROUP_COLUMN) if isinstance(value, dict) else None
        groups.append(str(column) if column else names[owner])
    return groups


def answer(
    generator: Generator, questions: Sequence[Question], settings: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, chunk: int = 64, file: Path | None = None,
) -> Iterator[Answered]:
    """Yield the answers in order; each chunk is appended to `file` (prompt, predict, label) as soon as it is there."""
    with nullcontext() if file is None else file.open("w", encoding="utf-8") as out:
        for start in range(0, len(questions), chunk):
            part = questions[start : start + chunk]
            completions = generator.generate([q.prompt for q in part], settings, seed=seed + start)
            answered = [Answered(q, completion) for q, completion in zip(part, completions, strict=True)]
            if out is not None:
                out.writelines(_line(one, tokenizer) for one in answered)
                out.flush()
            if len(questions) > chunk:
                say(f"answered {start + len(part)} of {len(questions)}")
            yield from answered


def _line(one: Answered, tokenizer: PreTrainedTokenizerBase) -> str:
    prompt = decode(tokenizer, list(one.question.prompt), skip_special_tokens=False)
    row = {"prompt": prompt, "predict": one.completion.text, "label": one.question.label}
    return json.dumps(row, ensure_ascii=False) + "\n"
