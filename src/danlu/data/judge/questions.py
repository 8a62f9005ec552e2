"""What is to be judged: prompts with two or more answers, from rows that list them or from several models' files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.core.records import Conversation, Message, Origin, Preference, Prompt
from danlu.data.answers import LISTS, has_pair, ranked_answers
from danlu.data.clean.source import data_files
from danlu.data.config import DataConfig
from danlu.data.judge.config import JudgeConfig
from danlu.data.layout import Layout
from danlu.data.lint.texts import GENERIC_CONTROLS
from danlu.data.loader import load_records
from danlu.data.row_file import open_rows
from danlu.data.row_format import FORMATS, RowProblem, detect, first_present
from danlu.data.turns import Dialogue

PREDICTED = ("prompt", "predict")
CONTROLS = re.compile(GENERIC_CONTROLS)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt with its different answers, in the order they were read, and who gave each."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    givers: tuple[str, ...]
    origin: Origin


def read_questions(config: JudgeConfig) -> list[Question]:
    """Return what is to be judged. Errors: DataError with file and row for what holds no two answers to judge."""
    files = data_files(config.input, config.dataset_dir)
    first = next((row.value for path in files for row in open_rows(path).scan() if not row.error), None)
    if isinstance(first, dict) and all(name in first for name in PREDICTED):
        return _joined(files, config)
    return [_of_row(value, origin) for path in files for value, origin in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[Any, Origin]]:
    for row in open_rows(path).scan():
        if row.error:
            raise row.error
        yield row.value, Origin(str(path), row.line or row.number)


def _of_row(row: Any, origin: Origin) -> Question:
    layout = Layout()
    try:
        if has_pair(row):
            name = detect(row, Preference)
            if name is None:
                raise RowProblem("", "no prompt", "a prompt beside chosen and rejected")
            pair = FORMATS[name]().preference(row, layout, origin)
            return _question(pair.prompt, [one.content for one in pair.answers], ["chosen", "rejected"], origin)
        if not isinstance(row, dict) or first_present(row, LISTS) is None:
            raise RowProblem("", "no answers", f"a list of answers under one of {', '.join(LISTS)}")
        name = detect(row, Prompt)
        if name is None:
            raise RowProblem("", "no prompt", "a prompt, as a text or as messages")
        asked = FORMATS[name]().prompt({key: value for key, value in row.items() if key not in LISTS}, layout, origin)
        _, turns = ranked_answers(row, layout, Dialogue(()), is_ordered=True)
        return _question(asked.messages, [one.message.content for one in turns], [], origin)
    except RowProblem as problem:
        raise DataError(str(problem), where=str(origin), fix="see docs/data_judge.md for the rows it reads") from None


def _question(prompt: tuple[Message, ...], answers: list[str], givers: list[str], origin: Origin) -> Question:
    named = givers if len(givers) == len(answers) else [str(number + 1) for number in range(len(answers))]
    return Question(prompt, tuple(answers), tuple(named), origin)


def _joined(files: list[Path], config: JudgeConfig) -> list[Question]:
    """Return prompts that two or more files answer, in the order of the first file that has them."""
    asked = _prompts(config)
    found: dict[Any, tuple[tuple[Message, ...], list[str], list[str], Origin]] = {}
    for path in files:
        at = 0
        prompt: tuple[Message, ...]
        for row, origin in _rows(path):
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in PREDICTED):
                raise DataError("a row without prompt and predict", where=str(origin),
                                fix="give files of predictions only, or rows with answers only")
            if asked is None:
                key, prompt = row["prompt"], (Message("user", row["prompt"]),)
                _check_plain(row["prompt"], origin)
            else:
                at = _find(asked, str(row.get("label", "")), at, origin)
                key, prompt = at, asked[at].messages[:-1]
                at += 1
            entry = found.setdefault(key, (prompt, [], [], origin))
            entry[1].append(row["predict"])
            entry[2].append(str(path.parent.name or path.stem) if path.stem.startswith("generated") else path.stem)
    questions = [Question(prompt, tuple(answers), tuple(givers), origin)
                 for prompt, answers, givers, origin in found.values() if len(answers) > 1]
    if not questions:
        raise DataError("no prompt has answers of two files", where=", ".join(config.input),
                        fix="give predictions on the same data; with other templates also name it: --prompts SET")
    return questions


def _prompts(config: JudgeConfig) -> Sequence[Any] | None:
    """Return the dialogues that were answered, None when they are not named."""
    if config.prompts is None:
        return None
    keys = DataConfig.model_validate({"dataset": (config.prompts,), "dataset_dir": config.dataset_dir})
    return load_records(keys, Conversation)


def _find(asked: Sequence[Any], label: str, start: int, origin: Origin) -> int:
    """Return the next dialogue whose own answer is the label of the prediction."""
    for index in range(start, len(asked)):
        if asked[index].messages[-1].content == label:
            return index
    raise DataError("no further prompt has the label of this prediction as its answer", where=str(origin),
                    fix="name the data set that these predictions answer, in its order: --prompts SET")


def _check_plain(prompt: str, origin: Origin) -> None:
    if CONTROLS.search(prompt):
        raise DataError("the prompt holds control tokens of a chat template, which would be trained as text",
                        where=str(origin), fix="name the data set that was answered: --prompts SET")
