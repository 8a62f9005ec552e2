"""Which data set gives the next row: the order of `danlu.data.mixing`, row by row, with a state to go on from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import ConfigError
from danlu.data.mixing import DRAWS_AT_A_TIME


class Mixer:
    """The data sets of one epoch in their order. `sizes` are the rows each of them has."""

    def __init__(self, sizes: Sequence[int], strategy: str, probabilities: Sequence[float], seed: int) -> None:
        if probabilities and not all(probabilities):
            raise ConfigError("a probability of 0 leaves a data set out", where="interleave_probs",
                              fix="give every set a probability above 0, or remove the set")
        self.sizes, self.seed = tuple(sizes), seed
        self.strategy = "concat" if len(sizes) == 1 else strategy
        self._weights = np.asarray(probabilities, np.float64) / sum(probabilities) if probabilities else None
        self.restart()

    def restart(self) -> None:
        """Go back to the first row of an epoch."""
        self.taken = [0] * len(self.sizes)
        self._turn = 0
        self._random = np.random.default_rng(self.seed)
        self._draw_block()

    def next(self) -> int | None:
        """Return the data set of the next row, None at the end of the epoch."""
        if self.strategy == "concat":
            owner = next((one for one, size in enumerate(self.sizes) if self.taken[one] < size), None)
        else:
            owner = self._next_turn() if self._weights is None else self._next_draw()
        if owner is not None:
            self.taken[owner] += 1
        return owner

    def rows_of_an_epoch(self) -> list[int]:
        """Return how many rows each data set gives in one epoch."""
        if self.strategy in ("concat", "interleave_once"):
            return list(self.sizes)
        if self._weights is None:
            rounds = min(self.sizes) if self.strategy == "interleave_under" else max(self.sizes)
            return [rounds] * len(self.sizes)
        return self._count_drawn()

    def state(self) -> dict[str, Any]:
        """Return where the epoch stands."""
        return {"taken": list(self.taken), "turn": self._turn, "random": self._block_state, "at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken."""
        self.taken, self._turn = list(state["taken"]), state["turn"]
        self._random.bit_generator.state = state["random"]
        self._draw_block()
        self._at = state["at"]

    def _next_turn(self) -> int | None:
        rounds = min(self.sizes) if self.strategy == "interleave_under" else max(self.sizes)
        while self._turn < rounds * len(self.sizes):
            step, owner = divmod(self._turn, len(self.sizes))
            self._turn += 1
            if step < self.sizes[owner] or self.strategy == "interleave_over":
                return owner
        return None

    def _next_draw(self) -> int | None:
        used_up = [taken >= size for taken, size in zip(self.taken, self.sizes, strict=True)]
        if any(used_up) if self.strategy == "interleave_under" else all(used_up):
            return None
        while True:
            if self._at == DRAWS_AT_A_TIME:
                self._draw_block()
            owner: int = self._block[self._at]
            self._at += 1
            if not (self.strategy == "interleave_once" and used_up[owner]):
                return owner

    def _draw_block(self) -> None:
        self._block_state: dict[str, Any] = dict(self._random.bit_generator.state)
        self._block: list[int] = [] if self._weights is None else self._draws(self._random).tolist()
        self._at = 0

    def _draws(self, random: np.random.Generator) -> NDArray[np.int64]:
        return random.choice(len(self.sizes), DRAWS_AT_A_TIME, p=self._weights)

    def _count_drawn(self) -> list[int]:
        """Follow the draws block by block to the one that ends the epoch."""
        random, sizes = np.random.default_rng(self.seed), np.array(self.sizes)
        counts = np.zeros(len(sizes), np.int64)
        ends = np.any if self.strategy == "interleave_under" else np.all
        while True:
            block = self._draws(random)
            after = counts + np.bincount(block, minlength=len(sizes))
            if ends(after >= sizes):
                break
            counts = after
        for owner in block.tolist():
            if ends(counts >= sizes):
                break
            counts[owner] += 1
        return [int(count) for count in counts]
