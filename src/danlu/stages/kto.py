"""Kahneman-Tversky optimisation: single answers with a thumb up or down, weighed against a KL baseline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.core.console import notice, say, warn
from danlu.core.records import Feedback
from danlu.core.stream import Example, FloatArray
from danlu.data.config import DataConfig
from danlu.data.encode import Encoded
from danlu.data.encode_answers import encode_feedback, with_mismatched
from danlu.losses.kto import kto_loss
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import STAGES, LossOutput, Models, Stage
from danlu.stages.reference import (
    ReferenceKeys,
    answer_scores,
    global_mean,
    no_grad_scores,
    with_facts,
)
from danlu.stages.reference_scores import ReferenceScores

OF_CLASS = {"chosen": "share/desirable", "rejected": "share/undesirable"}


BALANCED = (3 / 4, 4 / 3)
"""Where lambda_D n_D / (lambda_U n_U) causes no remark; Ethayarajh et al. 2024 advise 1 to 4/3."""


class KTOConfig(ReferenceKeys):
    """Keys of stage kto."""

    kto_chosen_weight: float = Field(1.0, ge=0, description="Weight of desirable answers (lambda_D).")
    kto_rejected_weight: float = Field(1.0, ge=0, description="Weight of undesirable answers (lambda_U).")
    pref_ftx: float = Field(0.0, ge=0, description="Weight of the chosen answer's mean SFT loss, added to the loss.")


@STAGES.register("kto")
class KTO(Stage):
    """L = w (1 - sigmoid(+-beta (log pi(y|x)/ref(y|x) - z))), a mean over answers (Ethayarajh et al. 2024, Eq. 7-8).

    z is the mean log-ratio of mismatched answers over the whole global batch, clamped at 0, without gradient.
    """

    Config = KTOConfig
    record = Feedback
    roles = ("policy", "reference")
    encode = staticmethod(encode_feedback)
    loss_is_nll = False
    metrics = ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")

    def __init__(self, config: KTOConfig, models: Models) -> None:
        super().__init__(config, models)
        self._reference = ReferenceScores(self)
        self._baseline = 0.0

    @staticmethod
    def arrange(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
        return with_mismatched(encoded, config)

    @classmethod
    def tell_of(cls, config: Any, facts_NF: FloatArray) -> None:
        """Say how many answers are desirable; warn of one label only and of classes far from balance."""
        good = int((facts_NF[:, 0] > 0.5).sum())
        bad = len(facts_NF) - good
        say(f"verdicts: {good} desirable and {bad} undesirable answers ({100 * good / (good + bad):.3g} % desirable)")
        if not good or not bad:
            side, way = ("desirable", "raise") if good else ("undesirable", "lower")
            warn(f"all answers are {side}: nothing keeps the model from learning to {way} every answer alike; "
                 "add rows of the other verdict")
            return
        ratio = config.kto_chosen_weight * good / max(config.kto_rejected_weight * bad, 1e-9)
        if not BALANCED[0] <= ratio <= BALANCED[1]:
            low, high = (config.kto_rejected_weight * bad * share / good for share in (1.0, 4 / 3))
            notice(f"desirable answers weigh {ratio:.3g} times as much as undesirable ones, and 1 to 4/3 is advised: "
                   f"kto_chosen_weight {low:.3g} to {high:.3g} with kto_rejected_weight {config.kto_rejected_weight:g}")

    def prepare(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Measure the KL baseline of the global batch, then leave the mismatched answers out."""
        examples = list(examples)
        reference_B2 = self._reference.of(examples, _of_rows)
        mismatched = [_segment(one, 1) for one in examples]
        policy_B1 = no_grad_scores(self, self.models.policy, mismatched, _totals)
        kl = global_mean(self, [p[0] - r[1] for p, r in zip(policy_B1, reference_B2, strict=True)])
        self._baseline = max(kl, 0.0)
        yield with_facts([_segment(one, 0) for one in examples], [both[:1] for both in reference_B2])

    def count(self, micro: StreamTensors) -> Tensor:
        return torch.tensor(float(len(micro.indices)), dtype=torch.float64)

    def loss(self, micro: StreamTensors) -> LossOutput:
        keys = self.config
        scores = answer_scores(micro, self.models.policy(micro, output="logps"))
        logps_B = scores.total
        desirable_B, reference_B = micro.facts[:, 0] > 0.5, micro.facts[:, 1]
        losses_B = kto_loss(
            logps_B, reference_B, desirable_B, baseline=logps_B.new_tensor(self._baseline), beta=keys.pref_beta,
            desirable_weight=keys.kto_chosen_weight, undesirable_weight=keys.kto_rejected_weight)
        if keys.pref_ftx:
            losses_B = losses_B - keys.pref_ftx * torch.where(desirable_B, scores.mean, 0.0)
        reward_B = keys.pref_beta * (logps_B - reference_B)
        metrics = {"kl": logps_B.new_tensor(self._baseline * len(logps_B))}
        for name, is_one in (("chosen", desirable_B), ("rejected", ~desirable_B)):
            metrics[f"rewards/{name}"] = reward_B[is_one].sum()
            metrics[f"logps/{name}"] = logps_B[is_one].sum()
            metrics[OF_CLASS[name]] = is_one.to(logps_B.dtype).sum()
        return LossOutput(losses_B.sum(), metrics)

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return rewards and log-probabilities as means over their own class; a class that is absent has none."""
        told = {"kl": means["kl"]} if "kl" in means else {}
        for name, share in OF_CLASS.items():
            if means.get(share):
                told |= {f"{kind}/{name}": means[f"{kind}/{name}"] / means[share] for kind in ("rewards", "logps")}
        if all(means.get(share) for share in OF_CLASS.values()):
            told["rewards/margins"] = told["rewards/chosen"] - told["rewards/rejected"]
        return told


def _totals(module: nn.Module, micro: StreamTensors) -> Tensor:
    return _of_rows(micro, module(micro, output="logps"))


def _of_rows(micro: StreamTensors, logps_R: Tensor) -> Tensor:
    """Return the log-probability of each segment's answer, (B, segments of an example)."""
    return answer_scores(micro, logps_R).total.view(len(micro.indices), -1)


def _segment(one: Example, which: int) -> Example:
    """Return the example's own dialogue (0) or the mismatched one (1)."""
    start = sum(one.lengths[:which])
    end = start + one.lengths[which]
    return replace(one, input_ids=one.input_ids[start:end], trained=one.trained[start:end], lengths=(end - start,))
