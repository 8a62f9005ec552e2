"""Answers sampled from the policy, and their rewards: what ppo and grpo share before any gradient.

Shape legend: B prompts, N answers of each, R response tokens of the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from danlu.core.console import notice
from danlu.core.stream import Example, FloatArray
from danlu.data.encode_prompts import read_note
from danlu.generation.base import Completion, Generator
from danlu.generation.config import GenerationConfig
from danlu.models.stream_tensors import StreamTensors
from danlu.rewards.base import Answer, RewardError
from danlu.rewards.config import RewardKeys
from danlu.rewards.mixture import Rewards, RewardTable
from danlu.stages.base import Surroundings
from danlu.stages.passes import by_answer, in_passes
from danlu.stages.reference import ReferenceModelKeys

Row = FloatArray
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_GAP = 1e-3  # nats a token between sampling and training, up to which the recorded numbers serve


class RolloutKeys(RewardKeys, ReferenceModelKeys):
    """Keys of every stage that trains on answers of its own."""

    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Taken off the reward of an answer that the limit of length ends.")
    rollout_log_samples: int = Field(
        8, ge=-1, description="Answers of each step that rollouts.jsonl keeps; -1 for all, 0 for none.")

    @property
    def answers_per_prompt(self) -> int:
        """Answers that are sampled for each prompt."""
        return 1

    def value_source(self) -> str | None:
        """Return the trained reward model that a value network may start as; None where there is not exactly one."""
        is_one = len(self.reward_model) == 1 and self.reward_model_type[0] in ("lora", "full")
        return self.reward_model[0] if is_one and not self.reward_model_adapters else None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer with its prompt.

    example  prompt and answer as one segment, the answer trained; `index` is the prompt's data-set position
    answer   what the rewards read
    logps    log pi(token) while it was sampled, one for each token of the answer
    sample   which of the prompt's answers this is
    """

    example: Example
    answer: Answer
    logps: Row
    sample: int

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.answer.ids)


class Rollouts:
    """Samples answers and has them rewarded."""

    def __init__(self, generator: Generator, settings: GenerationConfig, rewards: Rewards) -> None:
        self._generator, self.settings, self._rewards = generator, settings, rewards

    @property
    def cap(self) -> int:
        """Tokens that no answer has more of: the limit of answers, or that of prompt and answer."""
        return self.settings.max_new_tokens or self.settings.max_length

    def sample(self, prompts: Sequence[Example], samples: int, around: Surroundings) -> list[Rollout]:
        """Return `samples` answers of each prompt, those of one prompt side by side.

        Answer j of the prompt at data-set position i in step s draws from the random stream (seed, s, i, j).
        """
        keys = [(around.seed, around.step, prompt.index) for prompt in prompts]
        self._generator.refresh()
        with as_trained(around):
            found = self._generator.sample(
                [prompt.input_ids.tolist() for prompt in prompts], self.settings, keys=keys, samples=samples)
        return [rollout_of(prompt, completion, sample) for prompt, completions in zip(prompts, found, strict=True)
                for sample, completion in enumerate(completions)]

    def reward(self, rollouts: Sequence[Rollout], around: Surroundings) -> RewardTable:
        """Return the reward of each answer, and what each source gave. A failure in one process is one in all."""
        table, failure = None, RewardError("another process could not have its answers rewarded",
                                           fix="see what it says; the run goes on from its last checkpoint")
        try:
            table = self._rewards.score([one.answer for one in rollouts])
        except RewardError as error:
            failure = error
        if around.sum_over_ranks([float(table is None)])[0] or table is None:
            raise failure
        return table


def as_trained(around: Surroundings) -> torch.autocast:
    """Return the context in which the policy's own modules compute in the format of its training passes."""
    dtype = AUTOCAST.get(around.precision)
    return torch.autocast(around.device.type, dtype, enabled=dtype is not None)


class SampledLogps:
    """Whether log-probabilities recorded while sampling serve as the old policy's; the first step finds out.

    Sampling and training run the same modules, but not the same kernels: they agree to rounding, or not at all
    (quantised bases, 16-bit training). Where they agree, one forward pass a step is spared.
    """

    def __init__(self) -> None:
        self.serve: bool | None = None

    def checked(self, rollouts: Sequence[Rollout], fresh: Sequence[Row] | None, around: Surroundings) -> Sequence[Row]:
        """Return log pi_old of each answer: `fresh`, computed anew, or what was recorded when that is not given."""
        recorded = [one.logps for one in rollouts]
        if fresh is None:
            return recorded
        if self.serve is None:
            gap = max(float(np.abs(new - old).max()) for new, old in zip(fresh, recorded, strict=True))
            self.serve = around.total([gap])[0] <= LARGEST_GAP
            if not self.serve:
                notice(f"sampling and training differ by up to {gap:.2g} nats a token: log-probabilities of sampled "
                       "answers are computed anew")
        return fresh

    def state(self) -> dict[str, float]:
        """Return what was found out."""
        return {} if self.serve is None else {"sampled_logps_serve": float(self.serve)}

    def load_state(self, saved: Mapping[str, float]) -> dict[str, float]:
        """Take back what `state` returned; return the rest."""
        rest = dict(saved)
        self.serve = bool(rest.pop("sampled_logps_serve")) if "sampled_logps_serve" in rest else None
        return rest


def rollout_of(prompt: Example, completion: Completion, sample: int) -> Rollout:
    """Join a prompt with one of its answers."""
    messages, extra, origin = read_note(prompt.note)
    ids = np.concatenate([prompt.input_ids, np.array(completion.ids, np.int64)])
    trained = np.arange(len(ids)) >= len(prompt.input_ids)
    assert completion.logps is not None
    answer = Answer(tuple(prompt.input_ids.tolist()), completion.ids, completion.text, messages, extra,
                    completion.finish_reason == "stop", origin)
    return Rollout(Example(ids, trained, index=prompt.index), answer, np.array(completion.logps, np.float32), sample)


def with_tracks(rollout: Rollout, *tracks: Row, weight: float = 1.0) -> Example:
    """Return the example that a loss sees: one number of each track for each token of the answer.

    weight  scale of every token's loss; 0 leaves the answer out
    """
    example, start = rollout.example, len(rollout.answer.prompt_ids)
    laid = np.zeros((len(tracks), len(example.input_ids)), np.float32)
    laid[:, start:] = np.stack(tracks)
    weights = None if weight == 1.0 else np.full(len(example.input_ids), weight, np.float32)
    return replace(example, tracks=laid, weights=weights)


def weightless(example: Example) -> Example:
    """Return the example with every token's loss scaled to 0."""
    return replace(example, weights=np.zeros(len(example.input_ids), np.float32))


def mask_of(rollouts: Sequence[Rollout]) -> Tensor:
    """Return (B, T) bool: where an answer has a token."""
    lengths_B = torch.tensor([one.length for one in rollouts])
    return torch.arange(int(lengths_B.max()))[None, :] < lengths_B[:, None]


def padded(rows: Sequence[Row]) -> Tensor:
    """Return rows of different lengths as (B, T) float32, right-padded with 0."""
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def unpadded(table_BT: Tensor, rollouts: Sequence[Rollout]) -> list[Row]:
    """Return the row of each answer without its padding."""
    return [row[:one.length].numpy() for row, one in zip(table_BT, rollouts, strict=True)]


def by_prompt(examples: Sequence[Example], together: int) -> list[Example]:
    """Return one example for each `together` answers to one prompt, which stand side by side."""
    return [joined(examples[first:first + together]) for first in range(0, len(examples), together)]


def joined(examples: Sequence[Example], facts: tuple[float, ...] = ()) -> Example:
    """Return the answers to one prompt as the segments of one example, so that the prompt is computed once."""
    first = examples[0]
    tracks = [one.tracks for one in examples if one.tracks is not None]
    weights = [np.ones(len(one.input_ids), np.float32) if one.weights is None else one.weights for one in examples]
    return Example(
        np.concatenate([one.input_ids for one in examples]), np.concatenate([one.trained for one in examples]),
        np.concatenate(weights), tuple(len(one.input_ids) for one in examples), first.index, facts,
        np.concatenate(tracks, axis=1) if tracks else None)


def token_scores(score: Callable[[StreamTensors], Sequence[Tensor]], rollouts: Sequence[Rollout],
                 around: Surroundings, *, together: int = 1) -> list[list[Row]]:
    """Return, for each tensor (R,) that `score` gives, its part for each answer, without gradient.

    together  answers to one prompt, which stand side by side
    """
    groups = by_prompt([one.example for one in rollouts], together)
    found = in_passes(groups, around, lambda micro, part: list(
        zip(*(by_answer(tensor.float(), part) for tensor in score(micro)), strict=True)))
    return [[row for group in column for row in group] for column in zip(*found, strict=True)]
