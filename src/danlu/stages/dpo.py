"""Direct preference optimisation and its relatives: pairs of answers, a reference, no reward model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from danlu.core.key_types import only_with
from danlu.core.records import Preference
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import Encoded
from danlu.data.encode_answers import encode_preferences, pair_with_best
from danlu.losses import dpo
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Models, Stage
from danlu.stages.reference import (
    ReferenceKeys,
    answer_scores,
    global_mean,
    no_grad_scores,
    shared_length_weighted,
    with_facts,
)
from danlu.stages.reference_scores import ReferenceScores

SMOOTHED = ("sigmoid", "robust", "simpo")
REFERENCE_FREE = ("orpo", "simpo")
PER_TOKEN = ("ipo", "orpo", "simpo")


class DPOConfig(ReferenceKeys):
    """Keys of stage dpo."""

    pref_loss: Literal["sigmoid", "robust", "hinge", "ipo", "kto_pair", "orpo", "simpo"] = Field(
        "sigmoid", description="The loss on a pair; orpo and simpo need no reference.")
    dpo_label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Chance that a pair is labelled the wrong way round (cDPO, robust DPO).",
        json_schema_extra=only_with(pref_loss=SMOOTHED))
    pref_ftx: float = Field(0.0, ge=0, description="Weight of the chosen answer's mean SFT loss, added to the loss.")
    pref_bco_weight: float = Field(0.0, ge=0, description="Weight of the BCO loss on pairs, added to the loss.")
    simpo_gamma: float = Field(0.5, description="Margin by which SimPO's chosen answer must lead (gamma).",
                               json_schema_extra=only_with(pref_loss="simpo"))
    ld_alpha: float | None = Field(
        None, ge=0, le=1, description="Weight of the tokens past the shorter answer's length (LD-DPO); unset: 1.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dpo_label_smoothing and self.pref_loss not in SMOOTHED:
            raise ValueError(f"dpo_label_smoothing is for pref_loss {', '.join(SMOOTHED)}, not {self.pref_loss}")
        if self.pref_bco_weight and self.pref_loss in REFERENCE_FREE:
            raise ValueError(f"pref_bco_weight needs a reference, and pref_loss {self.pref_loss} has none")
        return self


@dataclass(frozen=True, slots=True)
class Pairs:
    """Log-probabilities of P pairs, (P,) float32, and the KL baselines of the whole global batch."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_kl: Tensor
    rejected_kl: Tensor

    @property
    def margin(self) -> Tensor:
        """Return log(pi_w / ref_w) - log(pi_l / ref_l)."""
        return dpo.log_ratio_margin(self.chosen, self.rejected, self.ref_chosen, self.ref_rejected)


def _kto_pair(pairs: Pairs, keys: DPOConfig) -> Tensor:
    return dpo.kto_pair_loss(pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected, beta=keys.pref_beta,
                             chosen_kl=pairs.chosen_kl, rejected_kl=pairs.rejected_kl)


LOSSES: Mapping[str, Callable[[Pairs, DPOConfig], Tensor]] = {
    "sigmoid": lambda p, k: dpo.sigmoid_loss(p.margin, beta=k.pref_beta, label_smoothing=k.dpo_label_smoothing),
    "robust": lambda p, k: dpo.robust_loss(p.margin, beta=k.pref_beta, label_smoothing=k.dpo_label_smoothing),
    "hinge": lambda p, k: dpo.hinge_loss(p.margin, beta=k.pref_beta),
    "ipo": lambda p, k: dpo.ipo_loss(p.margin, beta=k.pref_beta),
    "kto_pair": _kto_pair,
    "orpo": lambda p, k: k.pref_beta * dpo.orpo_odds_loss(p.chosen, p.rejected) - p.chosen,
    "simpo": lambda p, k: dpo.simpo_loss(p.chosen, p.rejected, beta=k.pref_beta, gamma=k.simpo_gamma,
                                         label_smoothing=k.dpo_label_smoothing),
}


@STAGES.register("dpo")
class DPO(Stage):
    """L = - log sigmoid(beta [log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)]), a mean over pairs (Eq. 7)."""

    Config = DPOConfig
    record = Preference
    roles = ("policy", "reference")
    encode = staticmethod(encode_preferences)
    loss_is_nll = False
    metrics = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
               "logps/rejected")

    def __init__(self, config: DPOConfig, models: Models) -> None:
        super().__init__(config, models)
        self._reference = ReferenceScores(self)
        self._reward_sum, self._reward_count = 0.0, 0.0
        self._baselines = (0.0, 0.0)

    @classmethod
    def roles_of(cls, config: Any) -> tuple[str, ...]:
        return ("policy",) if config.pref_loss in REFERENCE_FREE else cls.roles

    @staticmethod
    def arrange(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
        return pair_with_best(encoded, config)

    def prepare(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Attach the reference's log-probabilities; measure what depends on the whole global batch."""
        if self.config.pref_loss in REFERENCE_FREE:
            yield examples
            return
        reference_P2 = self._reference.of(examples, self._of_answers)
        if self.config.pref_loss == "kto_pair" or self.config.pref_bco_weight:
            policy_P2 = no_grad_scores(self, self.models.policy, examples, self._judged)
            self._measure([(p[0] - r[0], p[1] - r[1]) for p, r in zip(policy_P2, reference_P2, strict=True)])
        yield with_facts(examples, reference_P2)

    def count(self, micro: StreamTensors) -> Tensor:
        return torch.tensor(float(len(micro.indices)), dtype=torch.float64)

    def loss(self, micro: StreamTensors) -> LossOutput:
        keys = self.config
        logps_R = self.models.policy(micro, output="logps")
        pairs = self._pairs(self._of_answers(micro, logps_R), micro)
        losses = LOSSES[keys.pref_loss](pairs, keys)
        chosen_reward = keys.pref_beta * (pairs.chosen - pairs.ref_chosen)
        rejected_reward = keys.pref_beta * (pairs.rejected - pairs.ref_rejected)
        if keys.pref_ftx:
            losses = losses - keys.pref_ftx * answer_scores(micro, logps_R).mean.view(-1, 2)[:, 0]
        if keys.pref_bco_weight:
            shift = chosen_reward.new_tensor(self._reward_sum / max(self._reward_count, 1.0))
            losses = losses + keys.pref_bco_weight * dpo.bco_pair_loss(chosen_reward, rejected_reward, shift=shift)
        return LossOutput(losses.sum(), {
            "rewards/chosen": chosen_reward.sum(), "rewards/rejected": rejected_reward.sum(),
            "rewards/accuracies": (chosen_reward > rejected_reward).to(losses.dtype).sum(),
            "rewards/margins": (chosen_reward - rejected_reward).sum(),
            "logps/chosen": pairs.chosen.sum(), "logps/rejected": pairs.rejected.sum()})

    def state(self) -> dict[str, float]:
        """Return BCO's running sum of rewards and their number."""
        return {"reward_sum": self._reward_sum, "reward_count": self._reward_count}

    def load_state(self, saved: Mapping[str, float]) -> None:
        self._reward_sum, self._reward_count = saved["reward_sum"], saved["reward_count"]

    def _judged(self, module: nn.Module, micro: StreamTensors) -> Tensor:
        return self._of_answers(micro, module(micro, output="logps"))

    def _of_answers(self, micro: StreamTensors, logps_R: Tensor) -> Tensor:
        """Return log-probabilities of chosen and rejected answers as the loss takes them, (P, 2)."""
        alpha = self.config.ld_alpha
        if alpha is not None:
            logps_R = shared_length_weighted(micro, logps_R, alpha)
        scores = answer_scores(micro, logps_R)
        return (scores.mean if self.config.pref_loss in PER_TOKEN else scores.total).view(-1, 2)

    def _pairs(self, policy_P2: Tensor, micro: StreamTensors) -> Pairs:
        reference_P2 = micro.facts if micro.facts.numel() else torch.zeros_like(policy_P2)
        chosen_kl, rejected_kl = policy_P2.new_tensor(self._baselines)
        return Pairs(policy_P2[:, 0], policy_P2[:, 1], reference_P2[:, 0], reference_P2[:, 1], chosen_kl, rejected_kl)

    def _measure(self, ratios: Sequence[tuple[float, float]]) -> None:
        """Take the KL baselines of the global batch, and while training BCO's running mean of rewards."""
        means = [global_mean(self, [pair[side] for pair in ratios]) for side in (0, 1)]
        self._baselines = (max(means[0], 0.0), max(means[1], 0.0))
        if self.models.policy.training:
            weight = float(self.surroundings.counts)
            count = self.surroundings.sum_over_ranks([weight * len(ratios)])[0]
            self._reward_sum += self.config.pref_beta * (means[0] + means[1]) * count
            self._reward_count += 2 * count
