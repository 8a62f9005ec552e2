"""What a training stage is: functions split by who may touch gradients. Knows nothing of optimisers or devices.

    encode   records       -> examples          CPU, cached on disk, no model
    arrange  examples      -> examples          CPU: blocks for pre-training, packing
    prepare  one batch     -> minibatches       no_grad: rollouts, rewards, reference log-probs, baselines
    loss     one minibatch -> (SUM, metrics)    the only place that builds a graph
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from danlu.core.config import StrictConfig
from danlu.core.records import Record
from danlu.core.registry import Registry
from danlu.core.stream import Example, FloatArray
from danlu.data.config import DataConfig
from danlu.data.encode import EncodeContext, Encoded
from danlu.models.packed_lm import PackedLM
from danlu.models.stream_tensors import StreamTensors


@dataclass(slots=True)
class Models:
    """The networks a stage works with. The engine replaces `policy` by its distributed wrapper.

    rewards   frozen networks that score answers
    rollouts  `stages.rollouts.Rollouts`, for stages that train on answers of their own
    """

    policy: nn.Module
    reference: nn.Module | None = None
    rewards: Sequence[nn.Module] = ()
    rollouts: Any = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss before normalisation. The engine divides `total` and every metric by the step's global count."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Deal = Callable[[Sequence[Example]], list[list[int]]]
"""A cut of examples into forward passes: where those of each pass stand among all."""


def by_number(size: int) -> Deal:
    """Return a rule of passes: `size` examples each, in their order."""
    return lambda examples: [list(range(start, min(start + size, len(examples))))
                             for start in range(0, len(examples), size)]


@dataclass(slots=True)
class Surroundings:
    """What the engine tells a stage of where it runs, for the work of `prepare`.

    deal            how examples are cut into forward passes
    sum_over_ranks  sums of numbers over all processes, added in float64
    counts          False while this process has no share of the batch: it joins every reduction with weight 0
    step            number of the step, from 1; 0 in an evaluation
    seed            the seed of the run; random draws are keyed by (seed, step, position of the row, sample)
    folder          the run directory, for what a stage writes beside its results; None: nothing is written
    is_main         True in the one process that writes
    precision       of forward passes under autocast: bf16, fp16 or no
    """

    device: torch.device = torch.device("cpu")
    deal: Deal = field(default_factory=lambda: by_number(8))
    sum_over_ranks: Callable[[list[float]], list[float]] = list
    counts: bool = True
    step: int = 0
    seed: int = 0
    folder: Path | None = None
    is_main: bool = True
    precision: str = "no"

    def total(self, values: list[float]) -> list[float]:
        """Return sums over the processes that have a share of the batch."""
        return self.sum_over_ranks([value if self.counts else 0.0 for value in values])


class NoKeys(StrictConfig):
    """A stage without keys of its own."""


class Stage(ABC):
    """Base of every algorithm. Override what differs; `prepare` only if there is no-grad work to do."""

    Config: ClassVar[type[StrictConfig]] = NoKeys
    record: ClassVar[type[Record]]  # type: ignore[valid-type]
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    needs_template: ClassVar[bool] = True
    packs_by_default: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()  # the names that `loss` reports beside the loss
    loss_is_nll: ClassVar[bool] = True  # a mean per token, so that exp(loss) is a perplexity

    def __init__(self, config: Any, models: Models) -> None:
        self.config, self.models = config, models
        self.surroundings = Surroundings()

    @classmethod
    def record_of(cls, config: Any) -> type[Record]:  # type: ignore[valid-type]
        """Return the kind of record that a run with this Config reads."""
        return cls.record

    @classmethod
    def roles_of(cls, config: Any) -> tuple[str, ...]:
        """Return the networks that a run with this Config needs."""
        return cls.roles

    @classmethod
    def batches_of(cls, config: Any) -> int:
        """Return how many batches one step of the loop takes from the data set at once."""
        return 1

    @classmethod
    def tell_of(cls, config: Any, facts_NF: FloatArray) -> None:
        """Tell the user what the facts of the training set mean for the run; nothing for most stages."""
        return None

    @staticmethod
    def make_policy(lm: PackedLM) -> nn.Module:
        """Return the network that trains, made of the loaded language model."""
        return lm

    @staticmethod
    @abstractmethod
    def encode(records: Sequence[Any], context: EncodeContext) -> list[Encoded]:
        """Turn records into tokens."""

    @staticmethod
    def arrange(encoded: Sequence[Encoded], config: DataConfig) -> Sequence[Example]:
        """Turn encoded records into training examples; by default one example a record."""
        return [one.to_example(index) for index, one in enumerate(encoded)]

    def prepare(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Yield the minibatches of one batch; each becomes one optimiser step."""
        yield examples

    def collate(self, examples: Sequence[Example]) -> StreamTensors:
        """Lay one micro-batch out as tensors on the CPU."""
        return StreamTensors.of(examples)

    def count(self, micro: StreamTensors) -> Tensor:
        """Number of terms that `loss` sums over, as a float64 scalar."""
        return micro.loss_weights.double().sum()

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics as they are told, from their sums over the step divided by its count."""
        return dict(means)

    def told(self) -> dict[str, float]:
        """Return what else is known of the step, the same in every process: no sum over its examples."""
        return {}

    def state(self) -> dict[str, float]:
        """Return the numbers that must survive a checkpoint, running means for instance."""
        return {}

    def load_state(self, saved: Mapping[str, float]) -> None:
        """Take back what `state` returned."""
        assert not saved, f"{type(self).__name__} keeps no state of its own"

    @abstractmethod
    def loss(self, micro: StreamTensors) -> LossOutput:
        """Return the summed loss of one micro-batch; the only place that builds a graph."""


STAGES: Registry[type[Stage]] = Registry("stage", "danlu.stages")
