"""What a reward is: a number for each answer. A source is one file that registers itself; mixtures add them up."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from danlu.core.errors import OutsideError, UserError
from danlu.core.records import Message
from danlu.core.registry import Registry
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.rewards.config import RewardKeys
from danlu.templates.base import ChatTemplate

LARGEST = 3.4e38  # beyond it a float32 is infinite


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to be rewarded.

    prompt_ids  tokens of the prompt, with the generation prompt at its end
    ids         tokens of the answer, the stop token included when one ended it
    text        the answer as text, without control tokens
    messages    the dialogue that was answered
    extra       the other columns of the row, a reference answer for instance
    is_whole    False when the limit of length came before a stop token
    origin      file and row of the prompt
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    messages: tuple[Message, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True
    origin: str = ""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a source may build on.

    policy         the stock or peft model that trains: a LoRA reward is a second adapter on it
    compute_dtype  number format of frozen networks
    micro_batch    answers in one forward pass
    device         where networks run; asked for at the first call, when the engine has placed the policy
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    policy: nn.Module
    model: ModelConfig
    quantization: QuantizationConfig
    adapter: AdapterConfig
    compute_dtype: torch.dtype = torch.float32
    max_length: int = 2048
    micro_batch: int = 8
    device: Callable[[], torch.device] = lambda: torch.device("cpu")


class RewardError(OutsideError):
    """A source could not score an answer while the run was under way."""


class RewardSource(ABC):
    """Scores answers. `network` is what must be moved to the device and frozen, None without one."""

    name: ClassVar[str] = ""
    network: nn.Module | None = None

    @classmethod
    @abstractmethod
    def build(cls, source: str, keys: RewardKeys, context: RewardContext) -> Self:
        """Return the source that `source` names: a folder, URL, function or file. Raises UserError for a wrong one."""

    @abstractmethod
    def score(self, answers: Sequence[Answer]) -> list[float]:
        """Return one finite number for each answer, in their order.

        Raises RewardError naming the source, the row and the fix when a number cannot be had.
        """


def checked(what: str, answers: Sequence[Answer], scores: Sequence[Any], fix: str) -> list[float]:
    """Return the scores as floats. Raises RewardError unless there is one finite number for each answer.

    what  the source, as a reader calls it
    """
    if len(scores) != len(answers):
        raise RewardError(f"{len(scores)} rewards for {len(answers)} answers", where=what, fix=fix)
    for answer, score in zip(answers, scores, strict=True):
        if isinstance(score, str) or not isinstance(score, int | float):
            raise RewardError(f"the reward of {describe(answer)} is {score!r:.80}, which is no number",
                              where=what, fix=fix)
        if not abs(score) <= LARGEST:
            raise RewardError(f"the reward of {describe(answer)} is {score}", where=what, fix=fix)
    return [float(score) for score in scores]


def describe(answer: Answer) -> str:
    """Return the answer in a few words, with where its prompt was read."""
    text = answer.text if len(answer.text) <= 60 else answer.text[:57] + "..."
    return f"{text!r}" + (f" (prompt of {answer.origin})" if answer.origin else "")


@contextmanager
def keys_renamed(**names: str) -> Iterator[None]:
    """Let errors of loading a model name the keys of the reward: `keys_renamed(model_name_or_path="reward_model")`."""
    try:
        yield
    except UserError as error:
        what, where, fix = error.what, error.where, error.fix
        for own, shown in names.items():
            what, where, fix = (text.replace(own, shown) for text in (what, where, fix))
        raise type(error)(what, where=where, fix=fix) from error


REWARDS: Registry[type[RewardSource]] = Registry("reward source", "danlu.rewards")
"""Kinds of source by the names that `reward_model_type` takes."""
