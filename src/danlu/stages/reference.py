"""What offline alignment stages share: keys of the reference, scores of answers, and no gradient where none is due."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from danlu.core.config import StrictConfig
from danlu.core.key_types import CommaList
from danlu.core.stream import Example
from danlu.losses.dpo import length_desensitised
from danlu.models.adapter_switch import using_adapter
from danlu.models.proof import evaluating
from danlu.models.save import stock_model
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.base import Models, Stage
from danlu.stages.passes import in_passes


class ReferenceModelKeys(StrictConfig):
    """Keys that say which model the policy is compared with."""

    ref_model: str | None = Field(
        None, description="Folder of the reference model; unset: the policy as it starts training.")
    ref_model_adapters: CommaList = Field((), description="Adapters of the reference, merged in this order.")
    ref_model_quantization_bit: int | None = Field(
        None, description="Bits the reference is held in; unset: those of the policy, 16 or 32 for a ref_model.",
        json_schema_extra={"enum": [4, 8, None]})


class ReferenceKeys(ReferenceModelKeys):
    """Keys of stages that learn from given answers, weighed against a reference."""

    pref_beta: float = Field(0.1, gt=0, description="Strength of the pull towards the reference (beta; IPO's tau).")
    reference_cache: bool = Field(
        True, description="Keep the reference's log-probabilities on disk, for later epochs and runs.")


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of answers, (S,) float32: summed over tokens, and the number of tokens."""

    total: Tensor
    counts: Tensor

    @property
    def mean(self) -> Tensor:
        """Return log-probabilities averaged over tokens."""
        return self.total / self.counts.clamp(min=1)


def segment_of_rows(micro: StreamTensors) -> Tensor:
    """Return which segment each supervised row belongs to, (R,)."""
    return torch.bucketize(micro.loss_rows, micro.cu_seqlens[1:].to(micro.loss_rows.dtype), right=True)


def answer_scores(micro: StreamTensors, logps_R: Tensor) -> Scores:
    """Return the scores of each segment's answer."""
    segment_R, size = segment_of_rows(micro), len(micro.lengths)
    counts = torch.zeros(size, dtype=logps_R.dtype, device=logps_R.device)
    return Scores(counts.index_add(0, segment_R, logps_R), counts.index_add(0, segment_R, torch.ones_like(logps_R)))


def shared_length_weighted(micro: StreamTensors, logps_R: Tensor, alpha: float) -> Tensor:
    """Return logps of pairs of answers with the tokens past the shorter answer's length scaled by alpha (LD-DPO)."""
    segment_R = segment_of_rows(micro)
    counts_S = answer_scores(micro, logps_R.detach()).counts
    shared_S = counts_S.view(-1, 2).amin(1).repeat_interleave(2)
    place_R = torch.arange(len(logps_R), device=logps_R.device) - (counts_S.cumsum(0) - counts_S)[segment_R]
    return length_desensitised(logps_R, place_R < shared_S[segment_R], alpha=alpha)


@contextmanager
def reference_of(models: Models) -> Iterator[nn.Module]:
    """Yield the reference: a network of its own, or the policy with its adapter switched off."""
    if models.reference is not None:
        yield models.reference
        return
    inner = stock_model(models.policy)
    if not isinstance(inner, PeftModel):
        raise TypeError("a policy without adapter needs a reference of its own")
    with evaluating(models.policy), using_adapter(inner, None):
        yield models.policy


def no_grad_scores(stage: Stage, module: nn.Module, examples: Sequence[Example],
                   score: Callable[[nn.Module, StreamTensors], Tensor]) -> list[list[float]]:
    """Return `score(module, micro)`, (B, F), of every example, computed in evaluation mode."""
    with evaluating(module):
        return in_passes(examples, stage.surroundings, lambda micro, _: score(module, micro).tolist())


def with_facts(examples: Sequence[Example], facts: Sequence[Sequence[float]]) -> list[Example]:
    """Return the examples with more facts behind those they have."""
    return [replace(one, facts=(*one.facts, *more)) for one, more in zip(examples, facts, strict=True)]


def global_mean(stage: Stage, values: Sequence[float]) -> float:
    """Return the mean of a number per example over the global batch: all processes, all micro-batches."""
    weight = float(stage.surroundings.counts)
    total, count = stage.surroundings.sum_over_ranks([weight * sum(values), weight * len(values)])
    return total / count if count else 0.0
