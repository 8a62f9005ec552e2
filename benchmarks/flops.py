"""Floating-point operations of a step: by formula, as torch counts them, and how many a second the machine can do.

    Fb = 2 Nb T + A       body forward: Nb weights of its matrices, T tokens; attention A = 4 L d per (row, column) pair
    Fh = 2 Nh R           head forward on R supervised rows
    full: 3 Fb + 3 Fh     LoRA: 2 Fb + 2 Fh + 6 Na T     a pass without gradients: Fb + Fh

A shared prompt counts once (P + Rc + Rr for a pair). Nothing recomputed counts.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.workload import ANSWER_TOKENS, AROUND, SAMPLED, Shape

EPOCHS = 4
"""Epochs of ppo over a step's answers."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Tokens, supervised rows and attended pairs of one forward pass over some trees."""

    tokens: int = 0
    rows: int = 0
    pairs: float = 0.0

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(self.tokens + other.tokens, self.rows + other.rows, self.pairs + other.pairs)

    def flops(self, shape: Shape, *, attention: bool, head: bool) -> tuple[float, float]:
        """Return Fb and Fh."""
        attended = 4 * shape.layers * shape.hidden * self.pairs if attention else 0.0
        return 2.0 * shape.body * self.tokens + attended, 2.0 * shape.head * self.rows if head else 0.0


def tree(prompt: int, *answers: int) -> Pass:
    """Return a pass over a prompt of so many tokens with answers below it; answers are supervised."""
    pairs = prompt**2 / 2 + sum(a * prompt + a**2 / 2 for a in answers)
    return Pass(prompt + sum(answers), sum(answers), pairs)


@dataclass(frozen=True, slots=True)
class Work:
    """What a step must compute at least: passes with gradients and without, each with the head or without it."""

    trained: tuple[tuple[Pass, bool], ...]
    frozen: tuple[tuple[Pass, bool], ...] = ()


def work_of(stage: str, rows: Sequence[dict[str, Any]], block: int) -> Work:
    """Return what a step over these rows of a workload must compute; pre-training sees a block for each row."""
    sizes = [row["sizes"] for row in rows]
    prompts, answers = [s["prompt"] + AROUND - 1 for s in sizes], [s["answer"] + 1 for s in sizes]
    total = Pass()
    if stage == "pt":
        return Work(((sum([tree(0, block)] * len(rows), total), True),))
    if stage == "sft":
        return Work(((sum(map(tree, prompts, answers), total), True),))
    if stage in ("rm", "dpo"):
        others = [s["other"] + 1 for s in sizes]
        pairs = sum(map(tree, prompts, answers, others), total)
        return Work(((pairs, False),)) if stage == "rm" else Work(((pairs, True),), ((pairs, True),))
    if stage == "kto":
        mismatched = [*answers[1:], answers[0]]
        both = sum(map(tree, prompts, answers, mismatched), total)
        alone = sum(map(tree, prompts, mismatched), total)
        return Work(((sum(map(tree, prompts, answers), total), True),), ((both, True), (alone, True)))
    if stage in SAMPLED:
        return online_work(stage, sum((tree(prompt, *[ANSWER_TOKENS] * SAMPLED[stage]) for prompt in prompts), total))
    raise ValueError(f"no formula for stage {stage}")


def online_work(stage: str, answers: Pass) -> Work:
    """Sampling computes each token once with its logits; a reference scores them, a reward model reads them.

    ppo: a value network reads them too, then EPOCHS passes of policy and value network; grpo: one pass of the policy.
    """
    scored = ((answers, True), (answers, True), (answers, False))
    if stage == "grpo":
        return Work(((answers, True),), scored)
    return Work(((answers, True), (answers, False)) * EPOCHS, (*scored, (answers, False)))


def step_flops(shape: Shape, stage: str, method: str, rows: Sequence[dict[str, Any]], *, lora_rank: int = 8,
               attention: bool = True, block: int = 0) -> float:
    """Return the formula's operations of a step."""
    work = work_of(stage, rows, block)
    found = 0.0
    for one, head in work.trained:
        forward = sum(one.flops(shape, attention=attention, head=head))
        found += 3 * forward if method == "full" else 2 * forward + 6 * adapter_weights(shape, lora_rank) * one.tokens
    return found + sum(sum(one.flops(shape, attention=attention, head=head)) for one, head in work.frozen)


def adapter_weights(shape: Shape, rank: int) -> int:
    """Return the weights of a LoRA on every matrix of the body (Na)."""
    kv = shape.hidden * shape.kv_heads // shape.heads
    ends = 2 * (2 * shape.hidden) + 2 * (shape.hidden + kv) + 3 * (shape.hidden + shape.inner)
    return shape.layers * rank * ends


def counted_flops(arguments: list[str], steps: tuple[int, int] = (1, 2)) -> float:
    """Return what torch's counter sees in the second step of `danlu train`: a run of two steps less a run of one.

    No reference log-probability is kept, which the longer run would take over from the shorter one. Attention is left
    out: the counter knows it where it is made of batched products, and not where it is one call. Nor does it know the
    products of 4-bit weights.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from danlu.cli.main import main

    totals = []
    for number in steps:
        with FlopCounterMode(display=False) as counter:
            if main(["train", *arguments, f"max_steps={number}"]):
                raise RuntimeError(f"danlu train {' '.join(arguments)} failed")
        totals.append(sum(count for kind, count in counter.get_flop_counts()["Global"].items()
                          if kind is not torch.ops.aten.bmm))
    return float(totals[1] - totals[0])


def matrix_peak(seconds: float = 1.0, dtype_name: str = "float32", *, cpu_time: bool = False) -> float:
    """Return the most operations a second that square matrix products reach here now."""
    import torch

    clock = time.process_time if cpu_time else time.perf_counter
    best, ends = 0.0, time.perf_counter() + seconds
    size = 1024
    one, other = (torch.randn(size, size).to(getattr(torch, dtype_name)) for _ in range(2))
    while time.perf_counter() < ends:
        began = clock()
        torch.mm(one, other)
        best = max(best, 2 * size**3 / max(clock() - began, 1e-9))
    return best


def padded_share(stage: str, rows: Sequence[dict[str, Any]], batch: int) -> float:
    """Return the share of padding in batches of full rows of the same work, which danlu does not compute."""
    real, padded = 0, 0
    for start in range(0, len(rows), batch):
        lengths = [n for row in rows[start:start + batch] for n in sequence_lengths(stage, row)]
        real, padded = real + sum(lengths), padded + max(lengths) * len(lengths)
    return 1 - real / padded if padded else math.nan


def sequence_lengths(stage: str, row: dict[str, Any]) -> list[int]:
    """Return the lengths of the full sequences of a row."""
    if stage == "pt":
        return [1]
    sizes = row["sizes"]
    start = sizes["prompt"] + AROUND
    return [start + sizes["answer"]] + ([start + sizes["other"]] if stage in ("rm", "dpo") else [])
