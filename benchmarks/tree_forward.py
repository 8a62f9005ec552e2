"""A step on answers that share a prompt: the tree against segments apart and a padded batch of plain transformers.

    python benchmarks/tree_forward.py [--rounds 5] [--threads 1] [--bf16] [--out benchmarks/results/tree_forward]

The model is a 7 M Llama; prompts and answers have log-normal lengths, or one length each. DPO: 8 pairs, the policy's
forward and backward pass and the reference's forward pass. RM: one scalar an answer, forward and backward; the padded
peer makes no vocabulary logits either. The ways are timed in turns; medians are written. With one thread the seconds
are those of the processor, so that other work on the machine counts little.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from danlu.core.stream import Example
from danlu.losses.dpo import sigmoid_loss
from danlu.losses.reward import ranking_loss
from danlu.models.packed_lm import PackedLM
from danlu.models.padded import PaddedBatch
from danlu.models.reward_lm import RewardLM
from danlu.models.stream_tensors import StreamTensors
from danlu.stages.reference import answer_scores
from danlu.stages.rm import by_prompt

VOCAB = 8192
CASES = {  # prompt tokens, answer tokens: (median, spread); answers; groups
    "DPO, prompt = answer = 128": ((128, 0.0), (128, 0.0), 2, 8),
    "DPO, short prompts, log-normal": ((40, 0.6), (100, 0.6), 2, 8),
    "DPO, log-normal": ((120, 0.6), (90, 0.6), 2, 8),
    "RM, 2 answers, log-normal": ((120, 0.6), (90, 0.6), 2, 8),
    "RM, 4 answers, log-normal": ((120, 0.6), (90, 0.6), 4, 4),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of a step (the processor's with one thread, else the clock's), tokens computed and loss, by way."""

    case: str
    groups: int
    tokens: dict[str, int]
    seconds: dict[str, float]
    loss: dict[str, float]


def make_model() -> LlamaForCausalLM:
    """A Llama of 4 layers, 256 wide, grouped queries."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, attn_implementation="sdpa"))


def make_stream(prompt: tuple[int, float], answer: tuple[int, float], answers: int, groups: int) -> StreamTensors:
    """Groups of random answers behind a random prompt; answers carry loss."""
    random.seed(0)
    rng = np.random.default_rng(0)

    def tokens(size: tuple[int, float]) -> np.ndarray:
        length = int(min(500, max(8, size[0] * random.lognormvariate(0.0, size[1]))))
        return rng.integers(3, VOCAB, length)

    examples = []
    for index in range(groups):
        shared, own = tokens(prompt), [tokens(answer) for _ in range(answers)]
        ids = np.concatenate([np.concatenate([shared, one]) for one in own])
        trained = np.concatenate([np.arange(len(shared) + len(one)) >= len(shared) for one in own])
        examples.append(Example(ids, trained, lengths=tuple(len(shared) + len(one) for one in own), index=index))
    return StreamTensors.of(examples)


def pair_loss(stream: StreamTensors, policy_R: torch.Tensor, reference_R: torch.Tensor) -> torch.Tensor:
    """Return the mean DPO loss from log-probabilities of supervised rows."""
    margins = answer_scores(stream, policy_R - reference_R).total.view(-1, 2)
    return sigmoid_loss(margins[:, 0] - margins[:, 1], beta=0.1).mean()


def dpo_ways(stream: StreamTensors) -> tuple[dict[str, Callable[[], torch.Tensor]], torch.nn.Module]:
    """Return a loss function for each way: one model, reference = policy without gradient."""
    model = make_model()
    packed, batch = PackedLM(model), PaddedBatch.of(stream)
    streams = {"tree": stream, "apart": replace(stream, tree=None)}

    def padded_logps() -> torch.Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        logps = F.log_softmax(logits[:, :-1].float(), -1).gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
        rows = batch.places[stream.loss_rows]
        return logps.reshape(-1)[rows - rows // batch.input_ids.shape[1]]

    def step(logps: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            reference = logps()
        return pair_loss(stream, logps(), reference)

    ways = {name: (lambda one=one: step(lambda: packed(one, output="logps"))) for name, one in streams.items()}
    return {"padded": lambda: step(padded_logps), **ways}, model


def rm_ways(stream: StreamTensors) -> tuple[dict[str, Callable[[], torch.Tensor]], torch.nn.Module]:
    """Return a loss function for each way, over one scorer."""
    scorer, batch = RewardLM(PackedLM(make_model())), PaddedBatch.of(stream)
    body, ends = scorer.lm.model.model, stream.cu_seqlens[1:].long() - 1

    def loss(rewards_S: torch.Tensor) -> torch.Tensor:
        return ranking_loss(*by_prompt(rewards_S, stream)).mean()

    def padded() -> torch.Tensor:
        hidden = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return loss(scorer.value_head(batch.gather(hidden, ends).float()).squeeze(-1))

    return {"padded": padded, "apart": lambda: loss(scorer(replace(stream, tree=None))),
            "tree": lambda: loss(scorer(stream))}, scorer


def measure(case: str, rounds: int, bf16: bool) -> Result:
    """Time all ways of one case in turns."""
    stream = make_stream(*CASES[case])
    ways, model = (dpo_ways if case.startswith("DPO") else rm_ways)(stream)
    context = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses, clock = {}, time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(rounds + 1):
        for name, way in ways.items():
            model.zero_grad()
            start = clock()
            with context:
                loss = way()
            loss.backward()
            losses[name] = float(loss.detach())
            if turn:  # the first turn proves layouts and warms up
                times[name].append(clock() - start)
    assert stream.tree is not None
    tokens = {"padded": len(stream.lengths) * stream.max_length, "apart": stream.num_tokens,
              "tree": stream.tree.num_tokens}
    return Result(case, len(stream.indices), tokens, {name: statistics.median(t) for name, t in times.items()}, losses)


def table(results: list[Result], words: str) -> str:
    """Return the results as Markdown."""
    threads = torch.get_num_threads()
    lines = [
        f"# A shared prompt computed once, {datetime.now(UTC).date()}", "",
        f"`{words}`: {'one thread' if threads == 1 else f'{threads} threads'} of a two-core CPU, a small Llama",
        "(4 layers, 256 wide, 8k vocabulary). DPO: policy forward and backward, reference forward. RM: forward and",
        "backward. Padded: plain transformers, one row an answer. Groups are prompts with their answers.",
        "Seconds are " + ("the processor's" if threads == 1 else "the clock's")
        + "; tests/parity/test_tree_families.py holds loss and gradients equal.", "",
        "| case | tokens padded / apart / tree | groups/s padded | apart | tree | tree to padded | tree to apart |",
        "|---|---|---|---|---|---|---|"]
    for one in results:
        speed = {name: one.groups / seconds for name, seconds in one.seconds.items()}
        lines.append(
            f"| {one.case} | {one.tokens['padded']:,} / {one.tokens['apart']:,} / {one.tokens['tree']:,} | "
            f"{speed['padded']:.2f} | {speed['apart']:.2f} | {speed['tree']:.2f} | "
            f"{speed['tree'] / speed['padded']:.2f} | {speed['tree'] / speed['apart']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the arguments, measure every case, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [measure(case, arguments.rounds, arguments.bf16) for case in CASES]
    words = f"python benchmarks/tree_forward.py --rounds {arguments.rounds}" + (" --bf16" if arguments.bf16 else "")
    text = table(results, words)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
        arguments.out.with_suffix(".json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n",
                                                      encoding="utf-8")


if __name__ == "__main__":
    main()
