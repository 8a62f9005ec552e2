"""A bigram language model with its own stage, data set and saver: the engine's tests need no other part of danlu."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danlu.core.run_dir import RunDir
from danlu.core.stream import Example
from danlu.data.encode import EncodeContext, Encoded
from danlu.engine.config import EngineConfig
from danlu.engine.loop import Engine, TrainResult
from danlu.stages.base import LossOutput, Models, NoKeys, Stage

VOCABULARY = 17


class Bigram(nn.Module):
    """logits(t+1) = W e(x_t); with dropout in between, so that random state matters."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, micro: "Micro") -> Tensor:
        logits = self.head(self.norm(self.dropout(self.embed(micro.input_ids[:-1]))))
        losses = nn.functional.cross_entropy(logits.float(), micro.input_ids[1:], reduction="none")
        return (losses * micro.weights[1:]).sum()


@dataclass(frozen=True)
class Micro:
    input_ids: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Micro":
        return Micro(self.input_ids.to(device), self.weights.to(device))


class ToyStage(Stage):
    """Sum of -log p(x_{t+1} | x_t); the first token of each example is no target."""

    @staticmethod
    def encode(records: Sequence[Any], context: EncodeContext) -> list[Encoded]:
        raise AssertionError("the toy's data is made of tokens")

    def collate(self, examples: Sequence[Example]) -> Micro:  # type: ignore[override]
        ids = np.concatenate([e.input_ids for e in examples])
        weights = np.concatenate([
            (e.trained if e.weights is None else e.trained * e.weights) * (np.arange(len(e.trained)) > 0)
            for e in examples])
        return Micro(torch.from_numpy(ids), torch.from_numpy(weights.astype(np.float32)))

    def count(self, micro: Micro) -> Tensor:  # type: ignore[override]
        return (micro.weights != 0).double().sum()

    def loss(self, micro: Micro) -> LossOutput:  # type: ignore[override]
        total = self.models.policy(micro)
        return LossOutput(total, {"half": total.detach() / 2})


class ToyData:
    """Examples of very different lengths; `bad` puts a NaN weight into one of them."""

    def __init__(self, size: int = 23, seed: int = 0, bad: int | None = None) -> None:
        random = np.random.default_rng(seed)
        self.fingerprint = f"toy-{size}-{seed}-{bad}"
        self.examples = []
        for index in range(size):
            length = int(random.integers(3, 30))
            start, stride = random.integers(0, VOCABULARY), random.integers(1, 3)
            ids = (start + stride * np.arange(length)) % VOCABULARY
            trained = random.random(length) < 0.7
            trained[-1] = True
            weights = np.full(length, np.nan, np.float32) if index == bad else None
            self.examples.append(Example(ids.astype(np.int64), trained, weights, index=index))

    @property
    def lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def origin(self, index: int) -> str:
        return f"toy.jsonl:{index + 1}"


class ToySaver:
    def begin(self, policy: nn.Module, folder: Path) -> Callable[[], None]:
        return lambda: save_file(policy.state_dict(), folder / "model.safetensors")

    def restore(self, policy: nn.Module, folder: Path) -> None:
        policy.load_state_dict(load_file(folder / "model.safetensors"))


def make_config(folder: Path, **keys: object) -> EngineConfig:
    defaults: dict[str, object] = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 0.05, "num_train_epochs": 2, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    return EngineConfig(**(defaults | keys))  # type: ignore[arg-type]


def make_stage(dropout: float = 0.0, seed: int = 0) -> ToyStage:
    return ToyStage(NoKeys(), Models(Bigram(dropout, seed)))


def train(folder: Path, *, stage: ToyStage | None = None, data: ToyData | None = None, eval_data: object = None,
          **keys: object) -> tuple[TrainResult, ToyStage]:
    """Run the engine on the toy as a user's configuration would."""
    config, stage = make_config(folder, **keys), stage or make_stage()
    run = RunDir.create(folder, overwrite=config.overwrite_output_dir)
    result = Engine(config, run, ToySaver()).fit(stage, ToyData() if data is None else data, eval_data)  # type: ignore[arg-type]
    return result, stage


def weights(stage: ToyStage) -> Tensor:
    return torch.cat([p.detach().flatten() for p in stage.models.policy.parameters()])


def losses(result: TrainResult) -> list[float]:
    return [row["loss"] for row in result.history if "loss" in row]
