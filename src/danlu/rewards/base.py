"""What a reward is: a number for each answer. A source is one file that registers itself; mixtures add them up."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from danlu.core.records import Message
from danlu.core.registry import Registry
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig
from danlu.templates.base import ChatTemplate


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


class RewardSource(ABC):
    """Scores answers. `network` is what must be moved to the device, None without one."""

    name: ClassVar[str] = ""
    network: nn.Module | None = None

    @abstractmethod
    def score(self, answers: Sequence[Answer]) -> list[float]:
        """Return one finite number for each answer, in their order.

        Raises UserError naming the source, the row and the fix when a number cannot be had.
        """


REWARDS: Registry[type[Any]] = Registry("reward source", "danlu.rewards")
"""Classes with `build(name_or_path, keys, context) -> RewardSource`, by the names that `reward_model_type` takes."""
