"""One example as a person can read it: what the model sees, and between ⟦ ⟧ what it is trained to say."""

from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from danlu.core.stream import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_RUN = 240


class NamedExamples(Protocol):
    """Examples by position, each with the rows it was made from."""

    def __getitem__(self, index: int) -> Example: ...

    def origin(self, index: int) -> str:
        """Return `file:row` of an example."""


def describe_example(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of an example; segments are divided by `┃`, trained tokens stand between ⟦ and ⟧."""
    ids, trained = example.input_ids.tolist(), example.trained.tolist()
    parts, start = [], 0
    for length in example.lengths:
        runs = groupby(range(start, start + length), key=lambda place: trained[place])
        parts.append("".join(_run([ids[place] for place in places], tokenizer, is_trained=counts)
                             for counts, places in runs))
        start += length
    return "┃".join(parts).replace("\n", "↵")


def describe_first(dataset: NamedExamples, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return two lines: the size of the first example, and its text with the trained tokens marked."""
    example = dataset[0]
    size = f"{len(example.input_ids)} tokens, {int(example.trained.sum())} trained"
    shown = describe_example(example, tokenizer)
    return f"example 0 ({dataset.origin(0)}): {size}\n  {_shorten(shown, 4 * LONGEST_RUN)}"


def _run(ids: list[int], tokenizer: "PreTrainedTokenizerBase", *, is_trained: bool) -> str:
    text = _shorten(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), LONGEST_RUN)
    return f"⟦{text}⟧" if is_trained else text


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest // 2]} … {text[-longest // 2:]}"
