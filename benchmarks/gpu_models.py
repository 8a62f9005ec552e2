"""What benchmarks/gpu.py runs: models of stated shape with random weights, made on the device, and data of random ids.

Nothing is written to disk and no tokenizer is trained: examples are ready token ids.
"""

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.flops import Pass, adapter_weights, tree
from benchmarks.workload import Shape
from danlu.core.records import Message
from danlu.core.stream import Example
from danlu.data.encode_prompts import note_of
from danlu.engine import distributed, optimizers
from danlu.engine.config import EngineConfig
from danlu.engine.micro_batches import MicroBatches
from danlu.engine.step import Stepper
from danlu.engine.surroundings import place_frozen, surroundings
from danlu.generation.decode_graphs import Recorder, Run, cuda_recorder
from danlu.models.adapters import new_adapter
from danlu.models.checkpointing import set_checkpointing
from danlu.models.compiling import compile_layers
from danlu.models.config import AdapterConfig
from danlu.models.packed_lm import PackedLM
from danlu.stages.base import STAGES, Models, Stage

SHAPES = {
    "0.5B": Shape(151_936, 896, 24, 14, 2, 4864),
    "1.5B": Shape(151_936, 1536, 28, 12, 2, 8960),
    "7B": Shape(152_064, 3584, 28, 28, 4, 18_944),
    "8B": Shape(128_256, 4096, 32, 32, 8, 14_336),
    "Baichuan2-7B": Shape(125_696, 4096, 32, 32, 32, 11_008),
}
"""Those of Qwen2.5, Llama 3.1 and Baichuan2, without biases."""
TIED = ("0.5B", "1.5B")
TOY = Shape(512, 64, 2, 4, 2, 128)


@dataclass
class Place:
    """Where everything runs. `toy` puts one tiny shape in the place of all, and few short examples in that of many."""

    device: torch.device
    toy: bool
    folder: Path
    peak: float = 0.0
    open: list[Accelerator] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of frozen weights and of products."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def shape(self, name: str) -> Shape:
        """Return the shape of that name."""
        return TOY if self.toy else SHAPES[name]

    def small(self, number: int, toy: int) -> int:
        """Return a size: the true one, or the toy's."""
        return toy if self.toy else number

    def wait(self) -> None:
        """Return when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Give back the memory of what nothing refers to any more; begin to count its peak anew."""
        for accelerator in self.open:
            accelerator.free_memory()
        self.open.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> float:
        """Return the most memory that tensors took on the GPU since `clear`, in GiB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0


def random_model(place: Place, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a Llama of that shape; it names no stop token, so that answers run to their limit."""
    shape = place.shape(name)
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192, tie_word_embeddings=name in TIED, bos_token_id=None, eos_token_id=None,
        pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(place.device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


@dataclass
class Recordings:
    """Makes recorders for a rollout engine and counts the steps that were replayed.

    On a GPU they capture CUDA graphs; on a CPU a recorded step is called again, at full width and with rows added.
    """

    replayed: int = 0

    def __call__(self, base: PreTrainedModel) -> Recorder:
        return _Counted(self, cuda_recorder(base))


@dataclass
class _Counted:
    recordings: Recordings
    inner: Recorder | None
    pays_from: int = 2

    def warm(self, run: Run) -> torch.Tensor:
        return run() if self.inner is None else self.inner.warm(run)

    def record(self, run: Run) -> Run:
        replay = run if self.inner is None else self.inner.record(run)

        def counted() -> torch.Tensor:
            self.recordings.replayed += 1
            return replay()

        return counted


def in_four_bits(model: PreTrainedModel) -> PreTrainedModel:
    """Put 4-bit weights (NF4, scales in 8 bits) in the place of every linear layer but the head; return the model."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    linear = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head]
    for name, layer in linear:
        weight, (outer, _, own) = layer.weight, name.rpartition(".")
        packed = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=weight.dtype, quant_type="nf4",
            compress_statistics=True, quant_storage=torch.uint8, device="meta")
        packed.weight = bnb.nn.Params4bit(
            weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=torch.uint8,
            module=packed).to(weight.device)
        setattr(model.get_submodule(outer), own, packed)
    model.is_loaded_in_4bit = True  # peft asks for it when it wraps the layers
    return model


@dataclass(frozen=True, slots=True)
class Method:
    """How a model trains: full | lora | qlora, of which rank, with activations kept or computed again."""

    name: str
    rank: int = 16
    checkpointing: bool = False


def trainable(place: Place, name: str, method: Method) -> nn.Module:
    """Return the model ready to train: float32 masters for full, frozen weights in the compute dtype for adapters."""
    model: Any = random_model(place, name, torch.float32 if method.name == "full" else place.dtype)
    if method.name != "full":
        model.requires_grad_(False)
        model = in_four_bits(model) if method.name == "qlora" else model
        model = new_adapter(model, AdapterConfig(lora_rank=method.rank), f"random {name}")
    set_checkpointing(model, method.checkpointing)
    return model.train()


def make_stage(stage: str, keys: dict[str, Any], model: nn.Module, rollouts: Any = None) -> Stage:
    """Return a stage over the model, as recipe.py builds it."""
    kind = STAGES[stage]
    return kind(kind.Config(**keys), Models(kind.make_policy(PackedLM(model)), rollouts=rollouts))


def make_stepper(place: Place, stage: Stage, tokens: int, *, precision: str | None = None, micro_batch: int = 32,
                 **keys: Any) -> Stepper:
    """Return what takes optimiser steps, as engine/session.py builds it.

    tokens     of one forward pass
    precision  bf16 | fp16 | no; unset: bf16 on a GPU
    """
    precision = precision or ("bf16" if place.device.type == "cuda" else "no")
    config = EngineConfig(bf16=precision == "bf16", fp16=precision == "fp16", micro_batch_tokens=tokens,
                          use_cpu=place.device.type == "cpu", per_device_train_batch_size=micro_batch, **keys)
    accelerator, cut = distributed.start(config, place.folder, []), MicroBatches(micro_batch, tokens)
    place.open.append(accelerator)
    policy = stage.models.policy
    if config.torch_compile:
        compile_layers(policy, backend=config.torch_compile_backend, mode=config.torch_compile_mode)
    policy.train()
    stage.models.policy = distributed.wrap(accelerator, policy)
    place_frozen(stage, accelerator)
    stage.surroundings = surroundings(accelerator, cut.deal, seed=0, folder=place.folder)
    groups = optimizers.default_groups(policy, config)
    optimizer = accelerator.prepare_optimizer(optimizers.make_optimizer(groups, config))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return Stepper(accelerator, stage, stage.models.policy, optimizer, trained, cut, config.max_grad_norm, str)


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples, and the pass over them that a loss needs at least."""

    examples: list[Example]
    work: Pass

    @property
    def num_tokens(self) -> int:
        """Return the tokens of the data, a shared prompt once for each answer."""
        return sum(len(one.input_ids) for one in self.examples)


def log_normal_lengths(number: int, median: int, most: int) -> list[int]:
    """Return lengths around a median, spread 0.7 in the logarithm, none above `most`."""
    draw = random.Random(0)
    return [max(4, min(most, round(median * draw.lognormvariate(0.0, 0.7)))) for _ in range(number)]


def dialogues(shape: Shape, lengths: Sequence[int], supervised: float) -> Rows:
    """Return one segment of each length, of which the last part is trained."""
    rng, examples, work = np.random.default_rng(0), [], Pass()
    for index, length in enumerate(lengths):
        prompt = min(length - 1, round(length * (1 - supervised)))
        ids = rng.integers(3, shape.vocab_size, length)
        examples.append(Example(ids, np.arange(length) >= prompt, index=index))
        work = work + tree(prompt, length - prompt)
    return Rows(examples, work)


def pairs(shape: Shape, number: int, prompt: int, answer: int, facts: tuple[float, ...] = ()) -> Rows:
    """Return pairs of answers of one length to prompts of one length: two segments an example."""
    rng, examples = np.random.default_rng(1), []
    for index in range(number):
        start = rng.integers(3, shape.vocab_size, prompt)
        ids = np.concatenate([part for _ in range(2) for part in (start, rng.integers(3, shape.vocab_size, answer))])
        trained = np.tile(np.arange(prompt + answer) >= prompt, 2)
        examples.append(Example(ids, trained, lengths=(prompt + answer,) * 2, index=index, facts=facts))
    return Rows(examples, sum([tree(prompt, answer, answer)] * number, Pass()))


def prompts(shape: Shape, number: int, length: int) -> list[Example]:
    """Return prompts for sampling."""
    rng, note = np.random.default_rng(2), note_of([Message("user", "random ids")], {}, "")
    return [Example(rng.integers(3, shape.vocab_size, length), np.zeros(length, np.bool_), index=index, note=note)
            for index in range(number)]


def empty_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows no word: generators must have one to write text with."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")))


def formula(shape: Shape, work: Pass, method: Method, *, head: bool = True) -> float:
    """Return the useful operations of a step: 3 F for full, 2 F and the adapters for LoRA."""
    total = sum(work.flops(shape, attention=True, head=head))
    if method.name == "full":
        return 3 * total
    return 2 * total + 6 * adapter_weights(shape, method.rank) * work.tokens
