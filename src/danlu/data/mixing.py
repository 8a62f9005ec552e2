"""The order in which the rows of several data sets follow one another. Pure numpy; the same for the same seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import ConfigError

Places = NDArray[np.int64]  # (N, 2): data set, position in it
DRAWS_AT_A_TIME = 4096


def concat(sizes: Sequence[int]) -> Places:
    """Return all rows of the first set, then of the second, ..."""
    owners = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0)
    return np.stack([owners, rows], axis=1).astype(np.int64)


def mix(sizes: Sequence[int], strategy: str, probabilities: Sequence[float], seed: int) -> Places:
    """Return the order of `mix_strategy`.

    interleave_under stops when the first set is used up, interleave_over starts used-up sets again until the last is,
    interleave_once leaves used-up sets out, so that each row comes exactly once. Without probabilities the sets take
    turns.
    """
    if strategy == "concat" or len(sizes) == 1:
        return concat(sizes)
    if not probabilities:
        return _take_turns(sizes, strategy)
    return _draw(sizes, strategy, np.asarray(probabilities, np.float64) / sum(probabilities), seed)


def _take_turns(sizes: Sequence[int], strategy: str) -> Places:
    rounds = min(sizes) if strategy == "interleave_under" else max(sizes)
    is_over = strategy == "interleave_over"
    order = [(owner, step % size) for step in range(rounds) for owner, size in enumerate(sizes)
             if is_over or step < size]
    return np.array(order, np.int64).reshape(-1, 2)


def _draw(sizes: Sequence[int], strategy: str, weights: NDArray[np.float64], seed: int) -> Places:
    if not weights.all():
        raise ConfigError("a probability of 0 leaves a data set out", where="interleave_probs",
                          fix="give every set a probability above 0, or remove the set")
    rng = np.random.default_rng(seed)
    taken, order = [0] * len(sizes), list[tuple[int, int]]()
    needed = 1 if strategy == "interleave_under" else len(sizes)
    used_up = sum(size == 0 for size in sizes)
    while used_up < needed:
        for owner in rng.choice(len(sizes), DRAWS_AT_A_TIME, p=weights).tolist():
            if used_up >= needed or (strategy == "interleave_once" and taken[owner] >= sizes[owner]):
                continue
            order.append((owner, taken[owner] % sizes[owner]))
            taken[owner] += 1
            used_up += taken[owner] == sizes[owner]
    return np.array(order, np.int64).reshape(-1, 2)


def sample(size: int, wanted: int | None, seed: int) -> Places:
    """Return `wanted` of `size` positions: drawn without repetition as far as they reach, then again from all."""
    if wanted is None:
        return np.arange(size, dtype=np.int64)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(size)[:wanted]
    missing = wanted - len(drawn)
    return np.concatenate([drawn, rng.integers(0, size, missing)]).astype(np.int64)


def split(size: int, val_size: float, seed: int) -> tuple[Places, Places]:
    """Return sorted positions for training and for validation: a share below 1, or a count."""
    wanted = int(val_size) if val_size >= 1 else max(1, round(size * val_size))
    order = np.random.default_rng(seed).permutation(size)
    return np.sort(order[wanted:]), np.sort(order[:wanted])
