"""What is told of a step's answers: means over all processes, alarms, and a few answers word for word."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from danlu.core.console import warn
from danlu.rewards.mixture import RewardTable
from danlu.stages.alarms import Alarms
from danlu.stages.base import Surroundings
from danlu.stages.rollout_log import RolloutLog
from danlu.stages.rollouts import Rollout

OBSERVED = ("reward", "reward_std", "kl", "length", "truncated", "entropy")
"""Means over answers; kl in nats an answer, length in tokens, entropy in nats a token, estimated by -log pi(token)."""


class Observer:
    """Measures the answers of each step.

    kept       answers of a step that go to rollouts.jsonl; -1 for all
    kl_target  nats an answer that the run means to stay at
    cap        tokens an answer may have
    """

    def __init__(self, kept: int, *, kl_target: float, cap: int) -> None:
        self._kept, self._alarms = kept, Alarms(kl_target=kl_target, cap=cap)
        self._log: RolloutLog | None = None

    def see(self, around: Surroundings, rollouts: Sequence[Rollout], table: RewardTable, kl_B: Tensor,
            logps_B: Tensor) -> dict[str, float]:
        """Return the means of OBSERVED and of each reward source, and `answers`, their number over all processes."""
        rewards_B = torch.tensor(table.total).double()
        lengths_B = torch.tensor([one.length for one in rollouts]).double()
        cut_B = torch.tensor([not one.answer.is_whole for one in rollouts]).double()
        parts = table.parts if len(table.parts) > 1 else {}
        columns = [rewards_B, rewards_B**2, kl_B.double(), lengths_B, cut_B, -logps_B.double(),
                   *(torch.tensor(part).double() for part in parts.values())]
        answers, *sums = around.total([float(len(rollouts)), *(float(column.sum()) for column in columns)])
        reward, square, kl, length, cut, surprise, *rest = (one / max(answers, 1.0) for one in sums)
        told = {"reward": reward, "reward_std": max(square - reward**2, 0.0) ** 0.5, "kl": kl, "length": length,
                "truncated": cut, "entropy": surprise / max(length, 1e-9)}
        told |= {f"reward/{name}": value for name, value in zip(parts, rest, strict=True)}
        if around.step:
            for message in self._alarms.see(around.step, told):
                warn(message)
            self._write(around, rollouts, table, kl_B)
        return told | {"answers": answers}

    def state(self) -> dict[str, float]:
        """Return what the alarms remember."""
        return self._alarms.state()

    def load_state(self, saved: Mapping[str, float]) -> None:
        """Take back what `state` returned."""
        self._alarms.load_state(saved)

    def _write(self, around: Surroundings, rollouts: Sequence[Rollout], table: RewardTable, kl_B: Tensor) -> None:
        if around.folder is None or not self._kept or not around.counts:
            return
        self._log = self._log or RolloutLog(around.folder)
        number = len(rollouts) if self._kept < 0 else min(self._kept, len(rollouts))
        self._log.write(around.step, [{
            "index": one.example.index, "sample": one.sample, "origin": one.answer.origin,
            "prompt": [{"role": message.role, "content": message.content} for message in one.answer.messages],
            "answer": one.answer.text, "reward": table.total[place],
            "rewards": {name: part[place] for name, part in table.parts.items()}, "kl": float(kl_B[place]),
            "length": one.length, "whole": one.answer.is_whole} for place, one in enumerate(rollouts[:number])])
