"""Reward model: a value head on the last token of each answer, trained to rank answers as people did."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.core.config import StrictConfig
from danlu.core.key_types import only_with
from danlu.core.records import Preference
from danlu.core.stream import Example
from danlu.data.config import DataConfig
from danlu.data.encode import Encoded
from danlu.data.encode_answers import encode_preferences, keep_answers_together
from danlu.losses.reward import mean_over_pairs, pointwise_loss, ranking_loss
from danlu.models.packed_lm import PackedLM
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Stage


class RMConfig(StrictConfig):
    """Keys of stage rm."""

    rm_loss: Literal["ranking", "pointwise"] = Field(
        "ranking", description="ranking: every pair of a prompt's answers; pointwise: the best is good, the rest bad.")
    rm_margin: float = Field(0.0, ge=0, description="Reward by which the better answer must lead (Llama 2, Eq. 2).",
                             json_schema_extra=only_with(rm_loss="ranking"))
    rm_centre: float = Field(0.0, ge=0, description="Weight of (r_w + r_l)^2, which keeps rewards around 0.",
                             json_schema_extra=only_with(rm_loss="ranking"))


@STAGES.register("rm")
class RM(Stage):
    """L = - 1 / C(K, 2) sum_{i < j} log sigmoid(r_i - r_j - m), a mean over prompts (Ouyang et al. 2022, Eq. 1).

    K answers of a prompt are K segments of one example, scored in one forward pass.
    """

    Config = RMConfig
    record = Preference
    encode = staticmethod(encode_preferences)
    loss_is_nll = False
    metrics = ("accuracy", "margin", "rewards/chosen", "rewards/rejected")

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
        if self.config.rm_loss == "pointwise":
            is_good_GK = torch.zeros_like(rewards_GK).index_fill(1, valid_GK.new_zeros(1, dtype=torch.long), 1.0)
            losses_GK = pointwise_loss(rewards_GK, is_good_GK)
            losses_G = torch.where(valid_GK, losses_GK, 0.0).sum(1) / valid_GK.sum(1)
        else:
            losses_G = ranking_loss(rewards_GK, valid_GK, margin=self.config.rm_margin, centre=self.config.rm_centre)
        lead_GKK = rewards_GK[:, :, None] - rewards_GK[:, None, :]
        others_GK = torch.where(valid_GK, rewards_GK, 0.0)[:, 1:]
        return LossOutput(losses_G.sum(), {
            "accuracy": mean_over_pairs((lead_GKK > 0).to(rewards_GK.dtype), valid_GK).sum(),
            "margin": mean_over_pairs(lead_GKK, valid_GK).sum(),
            "rewards/chosen": rewards_GK[:, 0].sum(),
            "rewards/rejected": (others_GK.sum(1) / (valid_GK.sum(1) - 1).clamp(min=1)).sum()})


def by_prompt(rewards_S: Tensor, micro: StreamTensors) -> tuple[Tensor, Tensor]:
    """Return rewards as (G, K), best answer first, and which entries are answers."""
    sizes_G = torch.bincount(micro.owners, minlength=len(micro.indices))
    place_S = torch.arange(len(rewards_S), device=rewards_S.device) - (sizes_G.cumsum(0) - sizes_G)[micro.owners]
    valid_GK = torch.arange(int(sizes_G.max()), device=rewards_S.device) < sizes_G[:, None]
    empty = torch.zeros(valid_GK.shape, dtype=rewards_S.dtype, device=rewards_S.device)
    return empty.index_put((micro.owners, place_S), rewards_S), valid_GK
