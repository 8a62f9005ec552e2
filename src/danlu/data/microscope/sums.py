"""What a whole prepared set holds: lengths, supervised share, answers that end as they should, rows cut and dropped."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.core.stream import flatten
from danlu.data.dataset import TokenDataset

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
CLOSING = 3
"""A stop token counts as the end of an answer when it is among its last three trained tokens."""
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sums:
    """Numbers of a prepared set. `lengths` and `trained` hold one number for each example."""

    lengths: Counts
    trained: Counts
    answers: int
    ended: int
    read: int
    cut: int
    dropped: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The sums as a table of two columns."""
        tokens, trained = int(self.lengths.sum()), int(self.trained.sum())
        rows = [
            ("examples", f"{len(self.lengths):,}"), ("tokens", f"{tokens:,}"),
            ("trained tokens", f"{trained:,} ({_share(trained, tokens)} supervised)"),
            ("answers that end with a stop token", f"{self.ended:,} of {self.answers:,} "
                                                    f"({_share(self.ended, self.answers)})"),
            ("rows cut at cutoff_len", f"{self.cut:,} of {self.read:,} ({_share(self.cut, self.read)})"),
            ("rows left out", f"{self.dropped:,} of {self.read:,} ({_share(self.dropped, self.read)})")]
        rows += [(f"  {reason}", f"{number:,}") for reason, number in self.reasons]
        return rows + [("tokens of an example", percentiles(self.lengths)),
                       ("trained tokens of an example", percentiles(self.trained))]


def sum_up(dataset: TokenDataset, stop_ids: set[int]) -> Sums:
    """Walk a prepared set once and return its sums."""
    trained, answers, ended = np.zeros(len(dataset), np.int64), 0, 0
    for index in range(len(dataset)):
        stream = flatten([dataset[index]])
        targets = np.zeros(len(stream.input_ids) + 1, np.bool_)
        targets[stream.loss_rows + 1] = True
        trained[index] = len(stream.loss_rows)
        is_start = np.zeros(len(targets), np.bool_)
        is_start[stream.cu_seqlens] = True
        # An answer ends where the next token is not trained, or belongs to the next segment.
        ends = np.flatnonzero(targets[:-1] & (~targets[1:] | is_start[1:])) + 1
        answers += len(ends)
        ended += sum(bool(stop_ids.intersection(stream.input_ids[max(0, end - CLOSING):end].tolist()))
                     for end in ends.tolist())
    ledger = dataset.ledger
    return Sums(np.asarray(dataset.lengths), trained, answers, ended, ledger.total("read"), ledger.total("cut"),
                ledger.total("dropped"), tuple(ledger.reasons().most_common()))


def percentiles(values: Counts) -> str:
    """Return least, quartiles and so on, in words."""
    if not len(values):
        return "none"
    names = {0: "least", 50: "median", 100: "most"}
    found = np.percentile(values, PERCENTILES, method="lower").astype(int).tolist()
    return ", ".join(f"{names.get(share, f'{share} %')} {value:,}" for share, value in
                     zip(PERCENTILES, found, strict=True))


def histogram(values: Counts, bins: int = 30) -> list[tuple[int, int, int]]:
    """Return (first value, last value, count) of equal whole-number steps from the least to the most."""
    if not len(values):
        return []
    least, most = int(values.min()), int(values.max())
    step = max(1, -(-(most - least + 1) // bins))
    edges = np.arange(least, most + step + 1, step)
    counts, _ = np.histogram(values, bins=edges)
    return [(int(edges[index]), int(edges[index + 1]) - 1, int(count)) for index, count in enumerate(counts)]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
