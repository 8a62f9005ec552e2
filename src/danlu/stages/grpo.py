"""Group relative policy optimisation: several answers to each prompt are each other's baseline; no value network.

With it RLOO, Dr. GRPO and the clip of DAPO, as keys. Shape legend: G prompts, N answers of each, R response tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.core.key_types import only_with
from danlu.core.records import Prompt
from danlu.core.stream import Example
from danlu.data.encode_prompts import encode_prompts
from danlu.losses.group import centred_advantages, grpo_advantages, is_idle, rloo_advantages
from danlu.losses.kl import KL_ESTIMATORS
from danlu.losses.ppo import clip_fraction, ppo_policy_loss
from danlu.models.proof import evaluating
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Models, Stage
from danlu.stages.observer import OBSERVED, Observer
from danlu.stages.reference import reference_of
from danlu.stages.rollouts import Rollout, RolloutKeys, Row, SampledLogps, joined, token_scores, with_tracks

KL_TARGET = 10.0
"""Nats an answer, which the alarm measures by; the loss has no target of its own."""
ADVANTAGES = {"grpo": grpo_advantages, "dr_grpo": centred_advantages, "rloo": rloo_advantages}


class GRPOConfig(RolloutKeys):
    """Keys of stage grpo."""

    num_generations: int = Field(8, ge=2, description="Answers sampled for each prompt: one group.")
    grpo_epochs: int = Field(1, ge=1, description="How often a step trains on the answers it has sampled (mu).")
    grpo_advantage: Literal["grpo", "dr_grpo", "rloo"] = Field(
        "grpo", description="Baseline of an answer: its group's mean and spread, the mean alone, or the others' mean.")
    grpo_weighting: Literal["answer", "token", "constant"] = Field(
        "answer", description="A token weighs 1 / its answer's length (GRPO), 1 (DAPO), 1 / max_new_tokens (Dr. GRPO).")
    grpo_clip: float = Field(0.2, gt=0, description="How far the probability ratio may fall below 1 (epsilon).")
    grpo_clip_high: float | None = Field(
        None, gt=0, description="How far it may rise above 1; unset: as far as below (DAPO's clip-higher: 0.28).")
    grpo_beta: float = Field(0.04, ge=0, description="Weight of the KL to the reference; 0 needs no reference.")
    grpo_kl: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Estimator of the KL in the loss, after Schulman's note.",
        json_schema_extra=only_with(grpo_kl_in="loss"))
    grpo_kl_in: Literal["loss", "reward"] = Field(
        "loss", description="Whether the KL is a term of the loss (GRPO) or taken off the reward (RLOO).",
        json_schema_extra=only_with(grpo_beta=True))
    mask_truncated: bool = Field(
        False, description="Leave answers that the limit of length ends out of the loss (DAPO's overlong filtering).")

    @property
    def answers_per_prompt(self) -> int:
        return self.num_generations


@STAGES.register("grpo")
class GRPO(Stage):
    """L = - 1/G sum_i 1/|o_i| sum_t [ L_clip(rho_t, A_i) - beta KL_t ] (Shao et al. 2024, Eq. 3).

    A_i comes from the rewards of the answers to the same prompt alone; every token of an answer has it.
    """

    Config = GRPOConfig
    record = Prompt
    roles = ("policy", "reference", "rollouts")
    encode = staticmethod(encode_prompts)
    loss_is_nll = False
    metrics = (*OBSERVED, "policy_loss", "kl_loss", "clip_fraction", "idle_groups")

    def __init__(self, config: GRPOConfig, models: Models) -> None:
        super().__init__(config, models)
        self._observer = Observer(
            config.rollout_log_samples, kl_target=KL_TARGET, cap=models.rollouts.cap)
        self._sampled = SampledLogps()
        self._told: dict[str, float] = {}

    @classmethod
    def roles_of(cls, config: GRPOConfig) -> tuple[str, ...]:
        return cls.roles if config.grpo_beta else ("policy", "rollouts")

    def prepare(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Sample and reward a group for each prompt; the same groups come `grpo_epochs` times."""
        rollouts = self.models.rollouts.sample(examples, self.config.num_generations, self.surroundings)
        groups = self.groups(rollouts)
        for _ in range(self.config.grpo_epochs if self.surroundings.step else 1):
            yield groups

    def groups(self, rollouts: list[Rollout]) -> list[Example]:
        """Judge answers; return one example a prompt, with old logps, reference logps and advantages of its tokens."""
        keys, around, number = self.config, self.surroundings, self.config.num_generations
        logps = self._old_logps(rollouts)
        ref_logps = self._reference_logps(rollouts) or logps
        kl_B = torch.tensor([float((own - ref).sum()) for own, ref in zip(logps, ref_logps, strict=True)])
        table = self.models.rollouts.reward(rollouts, around)
        is_cut_B = torch.tensor([not one.answer.is_whole for one in rollouts])
        rewards_B = torch.tensor(table.total) - keys.missing_eos_penalty * is_cut_B
        if keys.grpo_kl_in == "reward":
            rewards_B = rewards_B - keys.grpo_beta * kl_B
        rewards_GN = rewards_B.view(-1, number)
        advantages_B = ADVANTAGES[keys.grpo_advantage](rewards_GN).flatten()
        self._told = self._observer.see(around, rollouts, table, kl_B, torch.tensor([row.sum() for row in logps]))
        idle, all_groups = around.total([float(is_idle(rewards_GN).sum()), float(len(rewards_GN))])
        self._told["idle_groups"] = idle / max(all_groups, 1.0)
        for name in ("answers",) if keys.grpo_beta else ("answers", "kl"):  # no reference, no KL
            self._told.pop(name)
        kept_B = ~(is_cut_B & keys.mask_truncated)
        advantages = [np.full(one.length, value, np.float32) for one, value in zip(rollouts, advantages_B, strict=True)]
        laid = [with_tracks(one, *tracks, weight=self._weight(one.length) if kept else 0.0)
                for one, kept, *tracks in zip(rollouts, kept_B, logps, ref_logps, advantages, strict=True)]
        counts_G = kept_B.view(-1, number).sum(1)
        return [joined(laid[place * number:(place + 1) * number], (float(count),))
                for place, count in enumerate(counts_G)]

    def count(self, micro: StreamTensors) -> Tensor:
        """Number of answers, or of their tokens when every token weighs the same."""
        return (micro.loss_weights if self.config.grpo_weighting == "token" else micro.facts).double().sum()

    def loss(self, micro: StreamTensors) -> LossOutput:
        keys, weights_R = self.config, micro.loss_weights
        old_logps_R, ref_logps_R, advantages_R = micro.tracks
        logps_R = self.models.policy(micro, output="logps")
        policy_R = ppo_policy_loss(
            logps_R, old_logps_R, advantages_R, clip=keys.grpo_clip, clip_high=keys.grpo_clip_high)
        means = {"policy_loss": policy_R, "clip_fraction": clip_fraction(
            logps_R, old_logps_R, clip=keys.grpo_clip, clip_high=keys.grpo_clip_high)}
        loss_R = policy_R
        if keys.grpo_beta and keys.grpo_kl_in == "loss":
            means["kl_loss"] = KL_ESTIMATORS[keys.grpo_kl](logps_R, ref_logps_R)
            loss_R = loss_R + keys.grpo_beta * means["kl_loss"]
        return LossOutput((weights_R * loss_R).sum(),
                          {name: (weights_R * values).sum() for name, values in means.items()})

    def told(self) -> dict[str, float]:
        return self._told

    def state(self) -> dict[str, float]:
        return {**self._sampled.state(), **self._observer.state()}

    def load_state(self, saved: Mapping[str, float]) -> None:
        self._observer.load_state(self._sampled.load_state(saved))

    def _weight(self, length: int) -> float:
        constant: int = self.models.rollouts.cap
        return {"answer": 1 / length, "token": 1.0, "constant": 1 / constant}[self.config.grpo_weighting]

    def _old_logps(self, rollouts: list[Rollout]) -> Sequence[Row]:
        fresh = None if self._sampled.serve else self._scored(self.models.policy, rollouts)
        return self._sampled.checked(rollouts, fresh, self.surroundings)

    def _reference_logps(self, rollouts: list[Rollout]) -> list[Row] | None:
        if not self.config.grpo_beta:
            return None
        with reference_of(self.models) as reference:
            return self._scored(reference, rollouts)

    def _scored(self, network: nn.Module, rollouts: list[Rollout]) -> list[Row]:
        with evaluating(network):
            return token_scores(lambda micro: (network(micro, output="logps"),), rollouts, self.surroundings,
                                together=self.config.num_generations)[0]
