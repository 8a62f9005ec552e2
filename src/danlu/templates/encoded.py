"""One encoded dialogue: token ids, which of them carry loss, where each round begins and ends."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.core.records import Origin
from danlu.core.stream import Example


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as tokens.

    input_ids  (T,) int32     token ids
    trained    (T,) bool      True where the token is a target of the loss
    weights    (T,) float32   scale of each token's loss; None means 1 everywhere
    turns      (start, answer_start, end) token offsets of each round: what is said to the model, its answer, the
               end of the answer with its end-of-turn text. Tokens before the first start are the prefix and system.
    origin     the row the record was read from
    facts      numbers beside the tokens, a label for instance
    note       what a stage keeps in words, as JSON
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32] | None
    turns: tuple[tuple[int, int, int], ...]
    origin: Origin
    facts: tuple[float, ...] = ()
    note: str = ""

    def to_example(self, index: int = -1) -> Example:
        """Return the one-segment example at data-set position `index`."""
        return Example(self.input_ids.astype(np.int64), self.trained, self.weights, (len(self.input_ids),), index,
                       self.facts, note=self.note)
