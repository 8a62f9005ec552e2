"""What a generator is: prompts of token ids in, completions out. Knows nothing of templates, roles or terminals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from danlu.core.registry import Registry
from danlu.generation.config import GenerationConfig
from danlu.models.config import AdapterConfig, ModelConfig, QuantizationConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    ids            the new tokens, the stop token included when one ended the answer
    text           those tokens as text, without the stop token
    finish_reason  "stop" when a stop token came, "length" when the limit came first
    logps          log pi(token | before) of each id under the unscaled policy, float32; None unless asked for
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    logps: tuple[float, ...] | None = None


class Generator(Protocol):
    """Anything that continues prompts: transformers in this process, or an engine of its own."""

    @property
    def context(self) -> int | None:
        """Return the number of tokens the model can see, prompt and answer together; None when unbounded."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, seed: int = 0
    ) -> list[Completion]:
        """Answer every prompt, in the order given. Row i depends on its prompt, `seed` and i alone."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], settings: GenerationConfig, *, keys: Sequence[Sequence[int]],
        samples: int = 1,
    ) -> list[list[Completion]]:
        """Return `samples` answers of each prompt, with the log-probability of every token.

        Answer j of prompt i draws from the random stream of (*keys[i], j) alone, so that it depends neither on the
        batch it is computed in nor on the process.
        """
        ...

    def stream(self, prompt: Sequence[int], settings: GenerationConfig, *, seed: int = 0) -> Iterator[str]:
        """Yield the answer to one prompt as pieces of whole characters; they join to the text of `generate`."""
        ...

    def refresh(self) -> None:
        """Take over what the policy has learnt since; nothing to do for a backend that runs the policy's modules."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What a generator is made for.

    model, quantization, adapter  what is loaded, for a backend that reads the files itself
    stop_ids                      tokens of the template that end an answer
    settings                      how answers are drawn, and the keys of the backend
    compute_dtype                 number format of a copy of the weights
    batch_size                    prompts that answer together, where the backend does not choose
    """

    model: ModelConfig
    quantization: QuantizationConfig
    adapter: AdapterConfig
    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: Sequence[int]
    settings: GenerationConfig
    compute_dtype: "torch.dtype"
    batch_size: int


@dataclass(frozen=True, slots=True)
class Backend:
    """How generators of one kind are made.

    build        takes the source, and the model in this process: None only where it is not needed
    needs_model  whether answers come from a model in this process; else a model given is a policy in training
    """

    build: Callable[[Source, Any], Generator]
    needs_model: bool = True


BACKENDS: Registry[Backend] = Registry("generation backend", "danlu.generation")
