"""Reward model: a value head on the last token of each answer, trained to rank answers as people did."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.core.config import StrictConfig
from danlu.core.key_types import only_with
from danlu.core.records import Graded, Preference, Record
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import Encoded
from danlu.data.encode_answers import encode_judged, keep_answers_together
from danlu.losses.calibration import BINS, gaps
from danlu.losses.reward import mean_over_pairs, pairs_of, pointwise_loss, ranking_loss
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Stage

SHARES = {"chosen": "share/chosen", "rejected": "share/rejected"}
GAPS = tuple(f"gap/{index}" for index in range(BINS))


class RMConfig(StrictConfig):
    """Keys of stage rm."""

    rm_loss: Literal["ranking", "pointwise"] = Field(
        "ranking", description="ranking: every pair of a prompt's answers; pointwise: each answer is good or bad, as "
        "its verdict says, or as the best of a preference and the rest.")
    rm_margin: float = Field(
        0.0, ge=0, description="Reward by which the better answer must lead (Llama 2, Eq. 2), added to a row's own.",
        json_schema_extra=only_with(rm_loss="ranking"))
    rm_centre: float = Field(0.0, ge=0, description="Weight of (r_w + r_l)^2, which keeps rewards around 0.",
                             json_schema_extra=only_with(rm_loss="ranking"))


@STAGES.register("rm")
class RM(Stage):
    """L = - 1 / C(K, 2) sum_{i < j} log sigmoid(r_i - r_j - m), a mean over prompts (Ouyang et al. 2022, Eq. 1).

    K answers of a prompt are K segments of one example, scored in one forward pass. Facts: margin, number of good ones.
    """

    Config = RMConfig
    record = Preference
    encode = staticmethod(encode_judged)
    loss_is_nll = False
    metrics = ("accuracy", "margin", "ece", "rewards/chosen", "rewards/rejected")

    @classmethod
    def record_of(cls, config: Any) -> type[Record]:
        return Graded if config.rm_loss == "pointwise" else cls.record

    @staticmethod
    def arrange(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
        return keep_answers_together(encoded, config)

    @staticmethod
    def make_policy(lm: PackedLM) -> nn.Module:
        return RewardLM(lm)

    def count(self, micro: StreamTensors) -> Tensor:
        return torch.tensor(float(len(micro.indices)), dtype=torch.float64)

    def loss(self, micro: StreamTensors) -> LossOutput:
        rewards_GK, valid_GK = by_prompt(self.models.policy(micro), micro)
        margin_G, num_good_G = micro.facts.T
        if self.config.rm_loss == "pointwise":
            return _pointwise(rewards_GK, valid_GK, num_good_G)
        margin_G11 = (margin_G + self.config.rm_margin)[:, None, None]
        losses_G = ranking_loss(rewards_GK, valid_GK, margin=margin_G11, centre=self.config.rm_centre)
        others_GK = torch.where(valid_GK, rewards_GK, 0.0)[:, 1:]
        lead_GKK = rewards_GK[:, :, None] - rewards_GK[:, None, :]
        pairs_GKK = pairs_of(valid_GK)
        weight_GKK = pairs_GKK / pairs_GKK.sum((1, 2), keepdim=True).clamp(min=1)
        return LossOutput(losses_G.sum(), {
            "accuracy": mean_over_pairs((lead_GKK > 0).to(rewards_GK.dtype), valid_GK).sum(),
            "margin": mean_over_pairs(lead_GKK, valid_GK).sum(),
            "rewards/chosen": rewards_GK[:, 0].sum(),
            "rewards/rejected": (others_GK.sum(1) / (valid_GK.sum(1) - 1).clamp(min=1)).sum(),
            **_gaps(lead_GKK[pairs_GKK], weight_GKK[pairs_GKK])})

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the calibration error of the bins; of pointwise labels the rewards as means over their own class."""
        told = {name: value for name, value in means.items() if name not in (*GAPS, *SHARES.values())}
        if any(name in means for name in GAPS):
            told["ece"] = sum(abs(means[name]) for name in GAPS)
        for name, share in SHARES.items():
            if share in means:
                reward = told.pop(f"rewards/{name}")
                told |= {f"rewards/{name}": reward / means[share]} if means[share] else {}
        if "margin" not in told and {"rewards/chosen", "rewards/rejected"} <= set(told):
            told["margin"] = told["rewards/chosen"] - told["rewards/rejected"]
        return told


def _pointwise(rewards_GK: Tensor, valid_GK: Tensor, num_good_G: Tensor) -> LossOutput:
    """Return the loss of labels good and bad; right is an answer whose reward has the sign of its label."""
    is_good_GK = torch.arange(rewards_GK.shape[1], device=rewards_GK.device) < num_good_G[:, None]
    weight_GK = valid_GK / valid_GK.sum(1, keepdim=True)
    side_GK = torch.where(is_good_GK, rewards_GK, -rewards_GK)
    metrics = {"accuracy": (weight_GK * (side_GK > 0)).sum(), **_gaps(side_GK[valid_GK], weight_GK[valid_GK])}
    for name, is_one_GK in (("chosen", is_good_GK), ("rejected", ~is_good_GK)):
        share_GK = weight_GK * is_one_GK
        metrics[f"rewards/{name}"], metrics[SHARES[name]] = (share_GK * rewards_GK).sum(), share_GK.sum()
    return LossOutput((weight_GK * pointwise_loss(rewards_GK, is_good_GK)).sum(), metrics)


def _gaps(lead_N: Tensor, weight_N: Tensor) -> dict[str, Tensor]:
    return dict(zip(GAPS, gaps(lead_N.detach(), weight_N.to(lead_N.dtype)), strict=True))


def by_prompt(rewards_S: Tensor, micro: StreamTensors) -> tuple[Tensor, Tensor]:
    """Return rewards as (G, K), best answer first, and which entries are answers."""
    sizes_G = torch.bincount(micro.owners, minlength=len(micro.indices))
    place_S = torch.arange(len(rewards_S), device=rewards_S.device) - (sizes_G.cumsum(0) - sizes_G)[micro.owners]
    valid_GK = torch.arange(int(sizes_G.max()), device=rewards_S.device) < sizes_G[:, None]
    empty = torch.zeros(valid_GK.shape, dtype=rewards_S.dtype, device=rewards_S.device)
    return empty.index_put((micro.owners, place_S), rewards_S), valid_GK
