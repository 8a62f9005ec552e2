"""A reward in Python: `file.py:name`, called with prompts, answers and the columns of their rows."""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from danlu.core.console import notice
from danlu.core.errors import UserError, did_you_mean
from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardError, RewardSource, checked
from danlu.rewards.config import RewardKeys

OWN = ("prompts", "completions", "messages", "completion_ids", "is_whole")
CONTRACT = "return one finite number for each completion, in a list"


@REWARDS.register("function")
class FunctionReward(RewardSource):
    """`name(prompts, completions, **columns) -> list[float]`; it gets the arguments that its signature names.

    prompts         the last user turn of each dialogue
    completions     the answers as text
    messages        the dialogues as lists of {"role", "content"}
    completion_ids  the answers as token ids
    is_whole        False where the limit of length cut an answer off
    others          columns of the data's rows, None where a row has none
    """

    name = "function"

    def __init__(self, file: Path, name: str, call: Callable[..., Any]) -> None:
        self._file, self._call, self._where = file, call, f"{file}:{name}"
        accepted = inspect.signature(call).parameters.values()
        self._takes_any = any(one.kind is one.VAR_KEYWORD for one in accepted)
        self._names = {one.name for one in accepted if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        self._required = {one.name for one in accepted if one.name in self._names and one.default is one.empty}

    @classmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        file, name = _parted(source)
        module = _imported(file)
        call = getattr(module, name, None)
        if not callable(call):
            defined = [other for other, value in vars(module).items() if inspect.isfunction(value)]
            raise UserError(f'{file} defines no function "{name}"', where="reward_model",
                            fix=did_you_mean(name, defined) or "define it at the top level of the file")
        if inspect.iscoroutinefunction(call):
            raise UserError(f"{name} is async; rewards are asked for one batch at a time", where=f"{file}:{name}",
                            fix="make it a plain function; it may run its own event loop inside")
        return cls(file, name, call)

    def score(self, answers: Sequence[Answer]) -> list[float]:
        arguments = self._arguments(answers)
        try:
            result = self._call(**arguments)
        except Exception as error:  # the user's code is an edge of the process: it may raise anything
            raise RewardError(f"the reward function raised {type(error).__name__}: {error}",
                              where=_place(error, self._file) or self._where,
                              fix="mend the function; the run goes on from its last checkpoint") from error
        return checked(f"reward function {self._where}", answers, _listed(result, self._where), CONTRACT)

    def _arguments(self, answers: Sequence[Answer]) -> dict[str, list[Any]]:
        """Return what the function takes. Raises RewardError when it asks for what no row has."""
        columns = sorted({column for answer in answers for column in answer.extra})
        for column in set(OWN) & set(columns):
            notice(f"the reward function sees danlu's own {column}; the column of that name is hidden from it")
        offered: dict[str, list[Any]] = {
            **{column: [answer.extra.get(column) for answer in answers] for column in columns},
            "prompts": [_last_question(answer) for answer in answers],
            "completions": [answer.text for answer in answers],
            "messages": [[{"role": one.role, "content": one.content} for one in answer.messages]
                         for answer in answers],
            "completion_ids": [list(answer.ids) for answer in answers],
            "is_whole": [answer.is_whole for answer in answers]}
        unknown = sorted(self._required - set(offered))
        if unknown:
            raise RewardError(f'the function asks for "{unknown[0]}", which is no column of the data',
                              where=self._where, fix=did_you_mean(unknown[0], offered))
        return offered if self._takes_any else {name: offered[name] for name in offered if name in self._names}


def _parted(source: str) -> tuple[Path, str]:
    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise UserError(f'"{source}" names no function', where="reward_model", fix="write path/to/file.py:name")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"file {file} does not exist", where="reward_model", fix="check the path")
    return file.resolve(), name


def _imported(file: Path) -> ModuleType:
    """Import the file under a name of its own; modules beside it can be imported by it."""
    name = f"danlu_reward_{file.stem}"
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code is an edge of the process: it may raise anything
        raise UserError(f"{file.name} cannot be imported: {type(error).__name__}: {error}",
                        where=_place(error, file) or str(file),
                        fix="mend the file, or install what it imports") from error
    return module


def _place(error: BaseException, file: Path) -> str:
    """Return `file:line` of the innermost frame in the user's file, "" when the error was raised elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == str(file)]
    return f"{file}:{frames[-1].lineno}" if frames else ""


def _listed(result: Any, where: str) -> list[Any]:
    """Return what the function gave as a list of plain numbers where they are such."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise RewardError(f"the function returned {type(result).__name__}, not a list", where=where, fix=CONTRACT)
    return [one.item() if hasattr(one, "item") and all(size == 1 for size in one.shape) else one for one in result]


def _last_question(answer: Answer) -> str:
    return next((one.content for one in reversed(answer.messages) if one.role == "user"), "")
