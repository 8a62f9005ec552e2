"""Work per step, counted: matrix products of whole training steps against the formulas, logits alive, updates launched.

    N_b  weights of the body's linear layers, N_h = V d of the head, N_a of the adapters; T tokens, R supervised rows
    forward: body F_b = 2 N_b T + A,  A = sum over segments of 2 L H h l^2 (causal: half of two products); F_h = 2 N_h R
    attention is counted as it is computed, in products of whole strips: what lies above a diagonal is in the slack

    full 3 F_b + 3 F_h      LoRA 2 F_b + 2 F_h + 6 N_a T      gradient checkpointing: F_b (LoRA: and 2 N_a T) more
"""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from danlu.core.stream import Example
from danlu.engine.config import EngineConfig
from danlu.engine.micro_batches import MicroBatches
from danlu.engine.optimizers import default_groups, make_optimizer
from danlu.engine.step import Stepper
from danlu.losses import vocabulary_sweep as head
from danlu.models.checkpointing import set_checkpointing
from danlu.models.packed_lm import PackedLM
from danlu.stages.base import STAGES, Models, Stage
from tests.tiny import tiny_model

LAYERS, WIDTH, MLP, VOCABULARY = 3, 256, 1024, 512
LEAST, SLACK = 0.97, 1.05
STAGE_NAMES = ("sft", "pt", "rm", "dpo", "kto")


def watch_logits(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Collect, at each block of the head, its logits and those alive; and how many a tile keeps."""
    seen: dict[str, list[int]] = {"block": [], "alive": [], "tile": []}
    made: list[weakref.ref[Tensor]] = []
    form, sweep = head.Head.logits, head.Head.sweep

    def logits(self: Any, *args: Any) -> Any:
        product, block = form(self, *args)
        assert block.data_ptr() == product.data_ptr()  # float32: one memory, so that one of them tells of both
        made.append(weakref.ref(product))
        seen["block"].append(product.numel())
        seen["alive"].append(sum(one.numel() for ref in made if (one := ref()) is not None))
        return product, block

    def keep(self: Any, *args: Any, **keys: Any) -> Any:
        swept = sweep(self, *args, **keys)
        seen["tile"].append(sum(block.values_tc.numel() for block in swept.kept))
        return swept

    monkeypatch.setattr(head.Head, "logits", logits)
    monkeypatch.setattr(head.Head, "sweep", keep)
    return seen


def cut_small(monkeypatch: pytest.MonkeyPatch, vocabulary: int, rows: int, words: int) -> None:
    """Make tiles of at most so many rows, and their blocks of at most so many words."""
    monkeypatch.setattr(head, "MIN_TILE_ROWS", rows)
    monkeypatch.setitem(head.TILE_BYTES, "cpu", 4 * vocabulary * rows)
    monkeypatch.setitem(head.MAX_TILE_ROWS, "cpu", rows)
    monkeypatch.setitem(head.BLOCK_BYTES, "cpu", 4 * words * rows)


class Updates(TorchDispatchMode):
    """Counts the updates of the optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket == torch.ops.aten._fused_adamw_
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Setup:
    """A stepper with the numbers that the formulas take."""

    stepper: Stepper
    body: int
    head: int
    adapters: int
    groups: int


def examples(stage: str) -> list[Example]:
    """Four rows; for rm and dpo two answers each, for kto an answer with a mismatched one behind it."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(4):
        parts = 1 if stage in ("sft", "pt") else 2
        lengths = tuple(int(n) for n in random.integers(60, 120, parts))
        trained = np.concatenate([np.arange(n) >= (0 if stage == "pt" else n // 2) for n in lengths])
        facts = {"kto": (float(index % 2),), "rm": (0.0, 1.0)}.get(stage, ())
        rows.append(Example(random.integers(5, VOCABULARY, sum(lengths)), trained, lengths=lengths, index=index,
                            facts=facts))
    return rows


def build(stage: str, method: str, *, checkpointing: bool = False) -> Setup:
    model: Any = tiny_model("llama", VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=MLP,
                            num_key_value_heads=4)
    linear = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    reference = None
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    elif stage in ("dpo", "kto"):
        reference = PackedLM(copy.deepcopy(model)).requires_grad_(False).eval()
    set_checkpointing(model, checkpointing)
    kind: type[Stage] = STAGES[stage]
    policy = kind.make_policy(PackedLM(model))
    config = EngineConfig()
    groups = default_groups(policy, config)
    built = kind(kind.Config(), Models(policy.train(), reference))
    accelerator = Accelerator(cpu=True)
    optimizer = make_optimizer(groups, config)
    trained = [p for group in groups for p in group["params"]]
    adapters = sum(p.numel() for p in trained if p.ndim == 2) if isinstance(model, PeftModel) else 0
    adapters -= WIDTH if stage == "rm" and adapters else 0
    return Setup(Stepper(accelerator, built, policy, optimizer, trained, MicroBatches(4), 1.0, str),
                 sum(n for name, n in linear.items() if name != "lm_head"), linear["lm_head"], adapters, len(groups))


def forward_flops(setup: Setup, segments: Sequence[int]) -> float:
    """F_b of segments of these lengths."""
    return sum(2.0 * setup.body * n + 2.0 * LAYERS * WIDTH * n * n for n in segments)


def counted(setup: Setup, rows: Sequence[Example]) -> float:
    """FLOPs of one step; one before it lets the model prove itself."""
    setup.stepper.run(rows, counts=True, step=1)
    fresh = [Example(row.input_ids[::-1].copy(), row.trained, lengths=row.lengths, index=row.index, facts=row.facts)
             for row in rows]
    with FlopCounterMode(display=False) as counter:
        setup.stepper.run(fresh, counts=True, step=2)
    return float(counter.get_total_flops())


def expected(setup: Setup, stage: str, rows: Sequence[Example], method: str, *, checkpointing: bool = False) -> float:
    """The formula for one step: training on all segments (kto: on the first), then what is scored without gradient."""
    segments, other = segments_of(stage, rows)
    passes, tokens = (3 if method == "full" else 2) + checkpointing, sum(segments)
    head_rows = 0 if stage == "rm" else read_by_the_loss(stage, segments)
    work = passes * forward_flops(setup, segments) + (3 if method == "full" else 2) * 2.0 * setup.head * head_rows
    work += (6 + 2 * checkpointing) * setup.adapters * tokens
    if stage in ("dpo", "kto"):
        mismatched = read_by_the_loss(stage, other)
        work += forward_flops(setup, [*segments, *other]) + 2.0 * setup.head * (head_rows + mismatched)
        work += forward_flops(setup, other) + 2.0 * (setup.head * mismatched + setup.adapters * sum(other))
    return work


def segments_of(stage: str, rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Return the lengths of what trains, and of kto's mismatched answers, which are scored alone."""
    segments = [n for row in rows for n in (row.lengths[:1] if stage == "kto" else row.lengths)]
    return segments, [row.lengths[1] for row in rows] if stage == "kto" else []


def read_by_the_loss(stage: str, segments: Sequence[int]) -> int:
    """Return at how many positions a loss reads the body's output."""
    return sum({"pt": n - 1, "rm": 1}.get(stage, n - n // 2) for n in segments)


def never_read(setup: Setup, stage: str, rows: Sequence[Example], method: str) -> float:
    """The last layer's MLP, 3 WIDTH x MLP weights, at positions that no loss reads, in every pass of `expected`."""
    segments, other = segments_of(stage, rows)
    dead, dead_other = (sum(part) - read_by_the_loss(stage, part) for part in (segments, other))
    training = 3 if method == "full" else 2
    scored = dead + 2 * dead_other if stage in ("dpo", "kto") else 0
    return 2.0 * 3 * WIDTH * MLP * (training * dead + scored)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_a_step_costs_what_the_formula_says(stage: str, method: str) -> None:
    """No more, and no less either: a step that skips work fails."""
    setup, rows = build(stage, method), examples(stage)
    share = counted(setup, rows) / (expected(setup, stage, rows, method) - never_read(setup, stage, rows, method))
    assert LEAST <= share <= SLACK


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_adds_one_forward_pass_of_the_body(method: str) -> None:
    setup, rows = build("sft", method, checkpointing=True), examples("sft")
    work = counted(setup, rows)
    assert work <= SLACK * expected(setup, "sft", rows, method, checkpointing=True)
    assert work > expected(setup, "sft", rows, method)


def test_attention_is_counted_per_segment() -> None:
    """A packed row of two segments costs what the two rows cost, not the square of their sum."""
    setup = build("sft", "full")
    one, other, *_ = examples("sft")
    packed = Example(np.concatenate([one.input_ids, other.input_ids]), np.concatenate([one.trained, other.trained]),
                     lengths=(*one.lengths, *other.lengths))
    assert counted(setup, [packed]) == counted(setup, [one, other])


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_logits_never_exceed_a_tile_and_each_group_is_one_update(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of at most 64 rows although each stage supervises more; one fused call for each group of parameters.

    Alive at once are at most the logits of one tile, none for rm, which never reads the vocabulary.
    """
    cut_small(monkeypatch, VOCABULARY, 64, VOCABULARY // 4)
    setup, rows = build(stage, "full"), examples(stage)
    assert sum(int(row.trained.sum()) for row in rows) > 64
    setup.stepper.run(rows, counts=True, step=1)
    seen = watch_logits(monkeypatch)
    with Updates() as updates:
        setup.stepper.run(rows, counts=True, step=2)
    assert bool(seen["block"]) == (stage != "rm")
    assert max(seen["block"], default=0) <= 16 * VOCABULARY
    assert max(seen["alive"], default=0) <= 64 * VOCABULARY
    assert any(seen["tile"]) == (stage in ("pt", "sft"))  # the others form several tiles again instead
    assert updates.number == setup.groups
