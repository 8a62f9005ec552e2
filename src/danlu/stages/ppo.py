"""Proximal policy optimisation against a reward: the third step of InstructGPT (Ouyang et al. 2022, Sec. 3.5).

Shape legend: B answers of the step, T response tokens (right-padded), R response tokens of a micro-batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.core.key_types import only_with
from danlu.core.records import Prompt
from danlu.core.stream import Example
from danlu.data.encode_prompts import encode_prompts
from danlu.losses.gae import gae
from danlu.losses.kl import adapted_coefficient, k3
from danlu.losses.ppo import clip_fraction, ppo_policy_loss, ppo_value_loss
from danlu.models.actor_critic import ActorCritic, Part
from danlu.models.packed_lm import PackedLM
from danlu.models.proof import evaluating
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Models, Stage
from danlu.stages.observer import OBSERVED, Observer
from danlu.stages.reference import reference_of
from danlu.stages.rollouts import (
    Rollout,
    RolloutKeys,
    SampledLogps,
    by_prompt,
    mask_of,
    padded,
    token_scores,
    unpadded,
    weightless,
    with_tracks,
)
from danlu.stages.whiten import EPS, Moments, Total, whiten


class PPOConfig(RolloutKeys):
    """Keys of stage ppo."""

    ppo_num_generations: int = Field(
        1, ge=1, description="Answers sampled for each prompt, which is computed once for all of them.")
    ppo_epochs: int = Field(4, ge=1, description="How often a step trains on the answers it has sampled.")
    ppo_buffer_size: int = Field(
        1, ge=1, description="Batches sampled at once; each epoch over them takes as many optimiser steps.")
    ppo_kl_coef: float = Field(0.2, ge=0, description="Weight of the KL to the reference in the reward, at the start.")
    ppo_kl_controller: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="Whether that weight follows the measured KL or stays.")
    ppo_target: float = Field(
        6.0, gt=0, description="KL of an answer, in nats, that the adaptive weight steers to.",
        json_schema_extra=only_with(ppo_kl_controller="adaptive"))
    ppo_kl_horizon: float = Field(
        10000.0, gt=0, description="Answers over which the adaptive weight moves; smaller is faster.",
        json_schema_extra=only_with(ppo_kl_controller="adaptive"))
    ppo_clip: float = Field(0.2, gt=0, description="How far the probability ratio may leave 1 (epsilon).")
    ppo_value_clip: float | None = Field(
        0.2, gt=0, description="How far a value may leave its value at sampling time; null for no limit.")
    ppo_value_coef: float = Field(0.1, ge=0, description="Weight of the value loss (c1).")
    ppo_entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus (c2).")
    ppo_gamma: float = Field(1.0, gt=0, le=1, description="Discount of later rewards.")
    ppo_lambda: float = Field(0.95, ge=0, le=1, description="Decay of generalised advantage estimation.")
    ppo_score_norm: bool = Field(
        False, description="Take the running mean off scores and divide them by their running spread.")
    ppo_score_clip: float | None = Field(None, gt=0, description="Bound of a score's size, before the KL is taken off.")
    ppo_whiten_rewards: bool = Field(False, description="Divide token rewards by their spread over the step.")
    ppo_whiten_advantages: bool = Field(True, description="Give advantages mean 0 and spread 1 over the step.")

    @property
    def answers_per_prompt(self) -> int:
        return self.ppo_num_generations


@dataclass(frozen=True, slots=True)
class Experience:
    """What a step knows of its answers before it trains, one row of each table an answer: (B, T) float32.

    together  answers to one prompt, which stand side by side
    """

    rollouts: list[Rollout]
    together: int
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def examples(self) -> list[Example]:
        """Return what the loss sees, one example a prompt: old logps, old values, advantages and returns."""
        columns = [unpadded(table, self.rollouts) for table in (self.logps, self.values, self.advantages, self.returns)]
        laid = [with_tracks(one, *rows) for one, *rows in zip(self.rollouts, *columns, strict=True)]
        return by_prompt(laid, self.together)


@STAGES.register("ppo")
class PPO(Stage):
    """L = E_t [ L_clip + c1 L_value - c2 H ] over response tokens (Schulman et al. 2017, Eq. 9).

    r_t = -beta log(pi / ref) + [t is last] score    (Ziegler et al. 2019, Eq. 2; a reward for every token)
    """

    Config = PPOConfig
    record = Prompt
    roles = ("policy", "value", "reference", "rollouts")
    encode = staticmethod(encode_prompts)
    loss_is_nll = False
    metrics = (*OBSERVED, "policy_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "kl_coef")

    def __init__(self, config: PPOConfig, models: Models) -> None:
        super().__init__(config, models)
        self._kl_coef, self._scores = config.ppo_kl_coef, Moments()
        self._observer = Observer(config.rollout_log_samples, kl_target=config.ppo_target,
                                  cap=models.rollouts.cap)
        self._told: dict[str, float] = {}
        self._sampled = SampledLogps()

    @classmethod
    def batches_of(cls, config: PPOConfig) -> int:
        return config.ppo_buffer_size

    @staticmethod
    def make_policy(lm: PackedLM) -> nn.Module:
        return ActorCritic(lm)

    def prepare(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Sample, reward and judge the answers of one step, then deal them out, `ppo_epochs` times over."""
        around = self.surroundings
        rollouts = self.models.rollouts.sample(examples, self.config.ppo_num_generations, around)
        ready = self.experience(rollouts).examples()
        if around.step == 0:
            yield ready
            return
        for epoch in range(self.config.ppo_epochs):
            order = np.random.default_rng([around.seed, around.step, epoch]).permutation(len(ready))
            for part in np.array_split(order, self.config.ppo_buffer_size):
                # Every process joins every update; one without answers of its own brings one that weighs nothing.
                yield [ready[i] for i in part] or [weightless(ready[0])]

    def experience(self, rollouts: list[Rollout]) -> Experience:
        """Judge answers: log-probabilities, values, the reward of every token, advantages and returns."""
        keys, around, together = self.config, self.surroundings, self.config.ppo_num_generations
        policy = self.models.policy
        wanted: tuple[Part, ...] = ("values",) if self._sampled.serve else ("values", "logps")
        with evaluating(policy):
            values, *fresh = token_scores(
                lambda micro: policy(micro, wanted=wanted), rollouts, around, together=together)
        logps = self._sampled.checked(rollouts, fresh[0] if fresh else None, around)
        with reference_of(self.models) as reference:
            ref_logps, = token_scores(
                lambda micro: (_logps(reference, micro),), rollouts, around, together=together)
        logps_BT, values_BT, mask_BT = padded(logps), padded(values), mask_of(rollouts)
        kl_BT = torch.where(mask_BT, logps_BT - padded(ref_logps), 0.0)
        table = self.models.rollouts.reward(rollouts, around)
        scores_B = self._shaped(torch.tensor(table.total), rollouts)
        rewards_BT = -self._kl_coef * kl_BT
        rewards_BT[torch.arange(len(rollouts)), mask_BT.sum(1) - 1] += scores_B
        if keys.ppo_whiten_rewards:
            rewards_BT = whiten(rewards_BT, mask_BT, around.total, keep_mean=True)
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=keys.ppo_gamma, lam=keys.ppo_lambda)
        if keys.ppo_whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, around.total)
        self._told = self._observer.see(around, rollouts, table, kl_BT.sum(1), logps_BT.sum(1))
        self._told["explained_variance"] = explained_variance(values_BT, returns_BT, mask_BT, around.total)
        self._told["kl_coef"] = self._kl_coef
        self._steer(int(self._told.pop("answers")))
        return Experience(rollouts, together, logps_BT, values_BT, advantages_BT, returns_BT)

    def loss(self, micro: StreamTensors) -> LossOutput:
        keys, weights_R = self.config, micro.loss_weights
        old_logps_R, old_values_R, advantages_R, returns_R = micro.tracks
        wanted = ("logps", "values", "entropy") if keys.ppo_entropy_coef else ("logps", "values")
        logps_R, values_R, *entropy_R = self.models.policy(micro, wanted=wanted)
        policy_R = ppo_policy_loss(logps_R, old_logps_R, advantages_R, clip=keys.ppo_clip)
        value_R = ppo_value_loss(values_R, old_values_R, returns_R, clip=keys.ppo_value_clip)
        loss_R = policy_R + keys.ppo_value_coef * value_R
        if entropy_R:
            loss_R = loss_R - keys.ppo_entropy_coef * entropy_R[0]
        means = {"policy_loss": policy_R, "value_loss": value_R, "approx_kl": k3(old_logps_R, logps_R),
                 "clip_fraction": clip_fraction(logps_R, old_logps_R, clip=keys.ppo_clip)}
        return LossOutput((weights_R * loss_R).sum(),
                          {name: (weights_R * values).sum() for name, values in means.items()})

    def told(self) -> dict[str, float]:
        return self._told

    def state(self) -> dict[str, float]:
        moments = {f"scores_{name}": value for name, value in asdict(self._scores).items()}
        return {"kl_coef": self._kl_coef, **moments, **self._sampled.state(), **self._observer.state()}

    def load_state(self, saved: Mapping[str, float]) -> None:
        rest = self._sampled.load_state(saved)
        self._kl_coef = rest.pop("kl_coef")
        self._scores = Moments(*(rest.pop(f"scores_{one.name}") for one in fields(Moments)))
        self._observer.load_state(rest)

    def _shaped(self, scores_B: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        """Return scores with the penalty of cut answers, normalised and bounded as the keys say."""
        keys, around = self.config, self.surroundings
        is_cut_B = torch.tensor([not one.answer.is_whole for one in rollouts])
        scores_B = scores_B - keys.missing_eos_penalty * is_cut_B
        if keys.ppo_score_norm:
            moments = self._scores.after(scores_B, around.total)
            self._scores = moments if around.step else self._scores
            scores_B = (scores_B - moments.mean) / (moments.std + EPS)
        return scores_B if keys.ppo_score_clip is None else scores_B.clamp(-keys.ppo_score_clip, keys.ppo_score_clip)

    def _steer(self, answers: int) -> None:
        """Move the KL weight towards the target by what this step's answers show."""
        keys = self.config
        if keys.ppo_kl_controller == "adaptive" and self.surroundings.step:
            self._kl_coef = adapted_coefficient(
                self._kl_coef, self._told["kl"], target=keys.ppo_target, horizon=keys.ppo_kl_horizon,
                batch=answers)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, total: Total) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the step's tokens; 0 when returns do not vary."""
    parts = [part[mask_BT].double() for part in (returns_BT, returns_BT - values_BT)]
    count, first, first_error, second, second_error = total(
        [float(len(parts[0])), *(float(part.sum()) for part in parts), *(float((part * part).sum()) for part in parts)])
    spread = second / max(count, 1) - (first / max(count, 1)) ** 2
    rest = second_error / max(count, 1) - (first_error / max(count, 1)) ** 2
    return 1 - rest / spread if spread > EPS else 0.0


def _logps(reference: nn.Module, micro: StreamTensors) -> Tensor:
    """Return log ref(a_t | s_t), (R,), of a model of its own or of the policy with its adapter off."""
    if isinstance(reference, PackedLM):
        return reference(micro, output="logps")
    logps_R: Tensor
    logps_R, = reference(micro, wanted=("logps",))
    return logps_R
