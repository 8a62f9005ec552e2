"""Tokens per second of one forward and backward pass: PackedLM against the same stock model on a padded batch.

    python benchmarks/packed_forward.py [--vocab 8192 32768] [--rounds 3] [--threads 1] [--bf16] [--uniform]

The model is a 7 M Llama, the data 16 dialogues of log-normal lengths (or of equal length, the worst case for packing).
The two are timed in turns, so that a slow spell of the machine meets both; medians are printed.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from danlu.core.stream import Example, flatten
from danlu.models.packed_lm import PackedLM
from danlu.models.padded import PaddedBatch
from danlu.models.stream_tensors import StreamTensors


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A Llama of 4 layers, 256 wide, grouped queries."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, attn_implementation="sdpa"))


def make_stream(vocab_size: int, uniform: bool) -> StreamTensors:
    """16 dialogues: a prompt without loss, an answer with loss."""
    random.seed(0)
    rng = np.random.default_rng(0)

    def length(mean: float, low: int, high: int) -> int:
        return int(min(high, max(low, random.lognormvariate(mean, 0.7))))

    examples = []
    for index in range(16):
        prompt, answer = (128, 128) if uniform else (length(4.2, 12, 400), length(4.5, 8, 500))
        ids = rng.integers(3, vocab_size, prompt + answer)
        examples.append(Example(ids, np.arange(prompt + answer) >= prompt, index=index))
    return StreamTensors.from_stream(flatten(examples))


def padded_step(model: LlamaForCausalLM, stream: StreamTensors) -> Callable[[], torch.Tensor]:
    """The stock way: right padding, logits and loss for every position."""
    batch = PaddedBatch.of(stream)
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.places[stream.loss_rows] + 1] = stream.loss_targets

    def step() -> torch.Tensor:
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss

    return step


def seconds(model: torch.nn.Module, step: Callable[[], torch.Tensor], bf16: bool) -> float:
    """Time one forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
        loss = step()
    loss.backward()
    return time.perf_counter() - start


def compare(vocab_size: int, rounds: int, bf16: bool, uniform: bool) -> None:
    """Print one line of results."""
    model, stream = make_model(vocab_size).train(), make_stream(vocab_size, uniform)
    packed = PackedLM(model)
    count = stream.loss_weights.sum()
    ways = {"padded": padded_step(model, stream), "packed": lambda: packed(stream) / count}
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses = {name: float(step().detach()) for name, step in ways.items()}
    for _ in range(rounds):
        for name, step in ways.items():
            times[name].append(seconds(model, step, bf16))
    median = {name: statistics.median(values) for name, values in times.items()}
    tokens = stream.num_tokens
    share, supervised = tokens / (len(stream.lengths) * stream.max_length), stream.num_rows / tokens
    print(
        f"V {vocab_size:6d}  tokens {tokens} ({share:.0%} of the padded batch, {supervised:.0%} supervised)  "
        f"padded {tokens / median['padded']:7.0f} tok/s  packed {tokens / median['packed']:7.0f} tok/s  "
        f"ratio {median['padded'] / median['packed']:.2f}  loss {losses['padded']:.6f} / {losses['packed']:.6f}")


def main() -> None:
    """Parse the arguments and print a line for each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--uniform", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for vocab_size in arguments.vocab:
        compare(vocab_size, arguments.rounds, arguments.bf16, arguments.uniform)


if __name__ == "__main__":
    main()
