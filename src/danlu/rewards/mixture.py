"""All rewards of a run: each source scores every answer, and the weighted scores are added up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from danlu.rewards.base import REWARDS, Answer, RewardContext, RewardSource, checked
from danlu.rewards.config import RewardKeys

NETWORK_FIX = "look at this row; lower learning_rate if the policy has gone astray, or name another reward_model"


@dataclass(frozen=True, slots=True)
class RewardTable:
    """The rewards of some answers.

    total  sum over the sources of weight times score
    parts  each source's own scores, unweighted, by its name: for logs
    """

    total: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A source with its weight in the sum, and its name in logs."""

    name: str
    source: RewardSource
    weight: float


class Rewards:
    """The sources of a run."""

    def __init__(self, sources: Sequence[Weighted]) -> None:
        self.sources = tuple(sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of `RewardTable.parts`."""
        return tuple(one.name for one in self.sources)

    @property
    def networks(self) -> list[nn.Module]:
        """What must be moved to the policy's device; all of it is frozen already."""
        return [one.source.network for one in self.sources if one.source.network is not None]

    def score(self, answers: Sequence[Answer]) -> RewardTable:
        """Return the rewards of the answers. Raises RewardError when a source gives none, or what is no number."""
        parts: dict[str, list[float]] = {}
        for one in self.sources:
            parts[one.name] = checked(f"reward {one.name}", answers, one.source.score(answers), NETWORK_FIX)
        total = [sum(one.weight * parts[one.name][index] for one in self.sources) for index in range(len(answers))]
        return RewardTable(total, parts)


def build_rewards(keys: RewardKeys, context: RewardContext) -> Rewards:
    """Build every source that the keys name. Raises UserError for one that is missing or does not fit the policy."""
    named = list(zip(_names(keys), keys.reward_model_type, keys.reward_model, keys.weights, strict=True))
    with torch.random.fork_rng(devices=[]):  # what the policy draws does not depend on its rewards
        sources = [Weighted(name, REWARDS[kind].build(source, keys, context), weight)
                   for name, kind, source, weight in named]
    for one in sources:
        if one.source.network is not None:
            one.source.network.requires_grad_(False).eval()
    return Rewards(sources)


def _names(keys: RewardKeys) -> list[str]:
    """Return each source's kind, with a number behind it where a kind comes twice: lora, rules_1, rules_2."""
    kinds = keys.reward_model_type
    return [kind if kinds.count(kind) == 1 else f"{kind}_{kinds[:place + 1].count(kind)}"
            for place, kind in enumerate(kinds)]
