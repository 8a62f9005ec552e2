"""How one step's examples are cut into micro-batches: few, of equal work, the largest first. Knows no torch.

The optimiser sees the same examples whatever the cut: totals are summed over the whole step and divided once. So the
cut is free to follow the machine: no micro-batch holds more tokens than a padded batch of `per_device_train_batch_size`
examples would, short examples share a pass, and the passes take about equally long. Memory that does not suffice shows
at the first pass of a step. Passes without gradient (rewards aside) are cut by the same rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from danlu.core.stream import Example

CPU_TOKENS = 1024
"""Tokens past which a pass on a CPU gains no speed: it only holds more activations."""
MOST_PADDED = 4
"""How many times the bound the examples of a micro-batch may be, padded to its longest: some models have to pad."""
LAYER_WIDTHS = 12.0
"""Weights of a decoder layer over d^2: 4 of attention, 8 of the feed-forward part."""


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """The rule of a run.

    examples  per_device_train_batch_size: with the step's longest example it bounds the tokens of a micro-batch
    tokens    micro_batch_tokens: the bound itself; None leaves it to `examples`
    width     d, the hidden size: a segment of l tokens costs l + l^2 / (12 d) tokens of linear layers; 0: attention is
              left out
    most      bound of the automatic rule alone; None: none
    """

    examples: int
    tokens: int | None = None
    width: int = 0
    most: int | None = None

    def cut(self, minibatch: Sequence[Example]) -> list[list[Example]]:
        """Return the micro-batches, most work first; an example longer than the bound stands alone."""
        return [[minibatch[at] for at in places] for places in self.deal(minibatch)]

    def deal(self, minibatch: Sequence[Example]) -> list[list[int]]:
        """Return where the examples of each micro-batch stand in the minibatch."""
        if len(minibatch) <= 1:
            return [list(range(len(minibatch)))]
        sizes = [len(one.input_ids) for one in minibatch]
        costs = [self._cost(one) for one in minibatch]
        bound = self._bound(max(sizes))
        number = max(1, math.ceil(sum(sizes) / bound)) if bound else len(minibatch)
        while (bins := _balanced(sizes, costs, number, bound)) is None:
            number += 1
        bins.sort(key=lambda bin: -sum(costs[at] for at in bin))
        return [sorted(bin) for bin in bins]

    def _bound(self, longest: int) -> int:
        if self.tokens is not None:
            return max(self.tokens, longest)
        padded = self.examples * longest
        return padded if self.most is None else min(padded, max(self.most, longest))

    def _cost(self, example: Example) -> float:
        quadratic = sum(length * length for length in example.lengths)
        return len(example.input_ids) + (quadratic / (LAYER_WIDTHS * self.width) if self.width else 0.0)


def _balanced(sizes: Sequence[int], costs: Sequence[float], number: int, bound: int) -> list[list[int]] | None:
    """Deal positions to `number` bins, the dearest first, each to the cheapest bin with room; None when one finds none.

    Longest processing time first (Graham 1969): the dearest bin is at most 4/3 of the best possible.
    """
    bins: list[list[int]] = [[] for _ in range(number)]
    loads, work = [0] * number, [0.0] * number
    for at in sorted(range(len(sizes)), key=lambda at: (-costs[at], at)):
        # the dearest example came first, and is the longest of its bin but for what attention costs
        roomy = [i for i in range(number) if not bins[i] or loads[i] + sizes[at] <= bound
                 and (len(bins[i]) + 1) * max(sizes[bins[i][0]], sizes[at]) <= MOST_PADDED * bound]
        if not roomy:
            return None
        chosen = min(roomy, key=lambda i: (work[i], i))
        bins[chosen].append(at)
        loads[chosen] += sizes[at]
        work[chosen] += costs[at]
    return [bin for bin in bins if bin]
