"""What a generator is: prompts of token ids in, completions out. Knows nothing of templates, roles or terminals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from danlu.core.registry import Registry
from danlu.generation.config import GenerationConfig


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


BACKENDS: Registry[Callable[..., Any]] = Registry("generation backend", "danlu.generation")
