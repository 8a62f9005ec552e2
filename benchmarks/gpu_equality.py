"""Whether what danlu computes on this device is right: each fast way against a plain one, with a tolerance.

Lines have a name, what was got, the tolerance and `ok`. Where 16-bit rounding would hide a fault or look like one, both
ways are held against the same computation in float32, and the fast way may be no farther from it than twice the plain.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_models import (
    Method,
    Place,
    Recordings,
    dialogues,
    empty_tokenizer,
    in_four_bits,
    log_normal_lengths,
    make_stage,
    make_stepper,
    pairs,
    random_model,
    trainable,
)
from danlu.core.stream import Example
from danlu.generation.config import GenerationConfig
from danlu.generation.decode_graphs import no_recorder
from danlu.generation.rollouts import RolloutGenerator
from danlu.generation.transformers_backend import TransformersGenerator
from danlu.losses.linear_cross_entropy import linear_cross_entropy, linear_logps
from danlu.models.flex_attention import attend_flex
from danlu.models.packed_lm import PackedLM
from danlu.models.segment_attention import Rule, attend_by_group, attend_dense, attend_varlen
from danlu.models.segments import Segments
from danlu.models.stream_tensors import StreamTensors

Line = dict[str, Any]
ROUNDING = {torch.bfloat16: 0.015, torch.float16: 0.003, torch.float32: 1e-5}
"""Relative distance that rounding may leave; a wrong mask or scale leaves a tenth and more."""


def line(name: str, got: float, tolerance: float, note: str = "") -> Line:
    """Return one line of the table."""
    return {"check": name, "got": got, "tolerance": tolerance, "ok": bool(got <= tolerance), "note": note}


def distance(one: Tensor, other: Tensor) -> float:
    """Return |one - other| / |other| over all entries."""
    return float(((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)).detach())


def attention(place: Place) -> Iterator[Line]:
    """Varlen attention (grouped calls on a CPU) against the dense oracle in float32: outputs and all gradients."""
    on_gpu = place.device.type == "cuda"
    way, called = (attend_varlen, "varlen") if on_gpu else (attend_by_group, "grouped")
    kinds = (torch.bfloat16, torch.float16) if on_gpu else (torch.bfloat16, torch.float32)
    flat, forked = _layouts(place)
    cases = {"segments": (flat, Rule()), "window": (flat, Rule(window=9)), "tree": (forked, Rule())}
    for heads, kv_heads, width in ((8, 2, 128), (4, 4, 64)):
        for dtype in kinds:
            for name, (segments, rule) in cases.items():
                torch.manual_seed(0)
                inputs = [torch.randn(1, count, sum(segments.lengths), width).to(place.device, dtype)
                          for count in (heads, kv_heads, kv_heads)]
                yield line(f"attention, {called}, {name}, {heads}/{kv_heads} heads of {width}, {_word(dtype)}",
                           _from_oracle(way, inputs, segments, rule), ROUNDING[dtype])


def fused_rules(place: Place) -> Iterator[Line]:
    """Flex attention against the same oracle: what varlen leaves; on a CPU, where it has no backward pass, outputs.

    Few cases, for each is compiled: soft-capping, windows and a tree at once; sinks; a tree in float32.
    """
    on_gpu = place.device.type == "cuda"
    half = torch.bfloat16 if on_gpu else torch.float32
    flat, forked = _layouts(place)
    sinks = torch.linspace(-1.0, 3.0, 8, device=place.device)
    cases = {"softcap and window, tree": (forked, Rule(window=9, softcap=2.0), half),
             "sinks": (flat, Rule(sinks=sinks), half), "tree": (forked, Rule(), torch.float32)}
    for name, (segments, rule, dtype) in cases.items():
        torch.manual_seed(0)
        inputs = [torch.randn(1, count, sum(segments.lengths), 128).to(place.device, dtype) for count in (8, 2, 2)]
        yield line(f"attention, flex, {name}, 8/2 heads of 128, {_word(dtype)}",
                   _from_oracle(attend_flex, inputs, segments, rule, backward=on_gpu), ROUNDING[dtype])


def _layouts(place: Place) -> tuple[Segments, Segments]:
    """Return segments, and the same behind a prompt with two answers."""
    lengths = log_normal_lengths(place.small(12, 5), place.small(150, 12), place.small(700, 40))
    prompt = lengths[0]
    made = []
    for blocks, parents in ((tuple(lengths), ()),
                            ((prompt, 7, prompt + 3, *lengths), (-1, 0, 0, *[-1] * len(lengths)))):
        bounds = torch.tensor([0, *blocks]).cumsum(0).to(torch.int32).to(place.device)
        made.append(Segments(blocks, bounds, max(blocks), parents=parents))
    return made[0], made[1]


def _from_oracle(way: Callable[..., Tensor], inputs: list[Tensor], segments: Segments, rule: Rule, *,
                 backward: bool = True) -> float:
    """Return how far the output and, with `backward`, the gradients are from the dense oracle's in float32 at most."""
    fast = _with_gradients(way, inputs, segments, rule, backward)
    exact = _with_gradients(attend_dense, [one.float() for one in inputs], segments, rule, backward)
    return max(distance(a, b) for a, b in zip(fast, exact, strict=True))


def _with_gradients(way: Callable[..., Tensor], inputs: list[Tensor], segments: Segments, rule: Rule,
                    backward: bool) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_(backward) for one in inputs]
    sinks = None if rule.sinks is None else rule.sinks.clone().requires_grad_(backward)
    out = way(*leaves, segments, replace(rule, sinks=sinks))
    if backward:
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape).to(out))
    return [out.detach(), *(one.grad for one in (*leaves, sinks) if one is not None and one.grad is not None)]


def shared_prompts(place: Place) -> Iterator[Line]:
    """A prompt with two answers computed once, against the same tokens laid out plainly: log-probs and gradients."""
    shape = place.shape("0.5B")
    rows = pairs(shape, place.small(8, 3), place.small(160, 24), place.small(96, 12))
    stream = StreamTensors.of(rows.examples).to(place.device)
    assert stream.tree is not None
    plain = replace(stream, tree=None)
    model = random_model(place, "0.5B", torch.float32).eval()
    exact, exact_tree = _scores(model, place, plain, None), _scores(model, place, stream, None)
    name = "tree against plain layout"
    yield line(f"{name}, log-probs, float32", float((exact[0] - exact_tree[0]).abs().max()), 1e-4)
    yield line(f"{name}, gradient, float32", distance(exact_tree[1], exact[1]), 1e-4)
    near, near_tree = (_scores(model, place, one, torch.bfloat16) for one in (plain, stream))
    for place_in, part in enumerate(("log-probs", "gradient")):
        own, other = distance(near_tree[place_in], exact[place_in]), distance(near[place_in], exact[place_in])
        yield line(f"{name}, {part}, bf16, over plain's error", own / max(other, 1e-12), 2.0)
        yield line(f"packed in bf16 against float32, {part}", other, 0.05)


def _scores(model: torch.nn.Module, place: Place, stream: StreamTensors, dtype: torch.dtype | None) -> list[Tensor]:
    """Return log-probabilities of all rows and the gradient of their mean by a middle layer's matrix."""
    lm = PackedLM(model)
    weight = model.model.layers[len(model.model.layers) // 2].mlp.down_proj.weight
    model.zero_grad()
    with torch.autocast(place.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logps = lm(stream, output="logps")
    logps.mean().backward()
    report = lm.report()
    if report.layout != "packed":
        raise RuntimeError(f"the model is not packed here: {report.notice}")
    return [logps.detach(), weight.grad.detach().clone()]


def vocabulary_head(place: Place) -> Iterator[Line]:
    """The tiled head against logits in full, in float32 of the same numbers: loss, log-probs and both gradients."""
    shape = place.shape("0.5B")
    rows, kinds = place.small(3000, 300), (place.dtype,) if place.dtype == torch.float32 else (torch.bfloat16,
                                                                                               torch.float16)
    for dtype in kinds:
        torch.manual_seed(0)
        hidden = torch.randn(rows, shape.hidden, device=place.device).to(dtype).requires_grad_()
        weight = (torch.randn(shape.vocab_size, shape.hidden, device=place.device) / 30).to(dtype).requires_grad_()
        targets = torch.randint(shape.vocab_size, (rows,), device=place.device)
        ones = torch.ones(rows, device=place.device)
        size = place.small(1024, 64)
        ways = {
            "nll": lambda h, w, y=targets, one=ones, t=size: linear_cross_entropy(h, w, y, one, tile_rows=t),
            "logps": lambda h, w, y=targets, t=size: -linear_logps(h, w, y, tile_rows=t).sum()}
        exact = _head_gradients(lambda h, w, y=targets: F.cross_entropy(h @ w.T, y, reduction="sum"),
                                hidden.float(), weight.float())
        for name, way in ways.items():
            fast = _head_gradients(way, hidden, weight)
            worst = max(distance(a, b) for a, b in zip(fast, exact, strict=True))
            yield line(f"tiled head, {name} and gradients, {_word(dtype)}", worst, ROUNDING[dtype])


def _head_gradients(way: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> list[Tensor]:
    leaves = [hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()]
    loss = way(*leaves)
    loss.backward()
    return [loss.detach(), *(one.grad for one in leaves if one.grad is not None)]


def rollouts(place: Place) -> Iterator[Line]:
    """Slots against `generate`, with CUDA graphs against without, log-probabilities against a packed forward pass."""
    shape, tokens = place.shape("0.5B"), place.small(32, 10)
    lengths = log_normal_lengths(place.small(12, 5), place.small(60, 12), 200)
    asked = [one.input_ids.tolist() for one in dialogues(shape, lengths, 0.0).examples]
    greedy = GenerationConfig(do_sample=False, max_new_tokens=tokens)
    drawn = GenerationConfig(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens)
    for dtype in dict.fromkeys((torch.float32, place.dtype)):
        model = random_model(place, "0.5B", dtype).eval()
        slots = RolloutGenerator(model, empty_tokenizer(), batch_size=place.small(8, 3))
        if dtype == torch.float32:
            stock = TransformersGenerator(model, empty_tokenizer(), batch_size=len(asked))
            found, expected = slots.generate(asked, greedy), stock.generate(asked, greedy)
            differing = sum(a != b for one, two in zip(found, expected, strict=True)
                            for a, b in zip(one.ids, two.ids, strict=True))
            yield line("rollouts, greedy tokens that differ from transformers generate, float32",
                       differing / (tokens * len(asked)), 0.01)
            yield from _graphs_against_eager(place, model, asked, greedy)
        answers = slots.sample(asked, drawn, keys=[(0, at) for at in range(len(asked))], samples=2)
        yield from _against_packed(place, model, asked, answers, dtype)


def _graphs_against_eager(place: Place, model: Any, asked: list[list[int]], greedy: GenerationConfig) -> Iterator[Line]:
    """Yield how far replayed steps lie from those that run as they stand, in float32, and whether any was replayed."""
    recordings, found = Recordings(), []
    for make in (recordings, no_recorder):
        slots = RolloutGenerator(model, empty_tokenizer(), batch_size=place.small(8, 3), make_recorder=make)
        found.append([group[0] for group in slots.sample(asked, greedy, keys=[(0, at) for at in range(len(asked))])])
    gap, differing = 0.0, 0
    for one, two in zip(*found, strict=True):
        alike = [a == b for a, b in zip(one.ids, two.ids, strict=True)]
        same = alike.index(False) if False in alike else len(alike)
        gap = max([gap, *(abs(a - b) for a, b in zip(one.logps[:same], two.logps[:same], strict=True))])
        differing += len(alike) - sum(alike)
    name = "rollouts, CUDA graphs against eager steps" if place.device.type == "cuda" else (
        "rollouts, steps of fixed shape, called again, against plain steps")
    yield line(f"{name}, greedy tokens that differ, float32", differing / sum(len(one.ids) for one in found[0]),
               0.01)
    yield line(f"{name}, log-probs until tokens differ, largest gap in nats, float32", gap, 1e-3)
    yield line(f"{name}, 1 if no step was replayed", float(recordings.replayed == 0), 0.0)


def _against_packed(place: Place, model: Any, asked: list[list[int]], answers: Any, dtype: torch.dtype,
                    ) -> Iterator[Line]:
    """Yield how far log-probabilities that were recorded while sampling lie from those of a packed forward pass."""
    import numpy as np

    rows = [(prompt, one) for prompt, group in zip(asked, answers, strict=True) for one in group]
    examples = [Example(np.array([*prompt, *one.ids]), np.arange(len(prompt) + len(one.ids)) >= len(prompt))
                for prompt, one in rows]
    with torch.no_grad():
        packed = PackedLM(model)(StreamTensors.of(examples).to(place.device), output="logps").cpu()
    recorded = torch.tensor([logp for _, one in rows for logp in one.logps])
    gap, word = (packed - recorded).abs(), _word(dtype)
    exact = dtype == torch.float32
    yield line(f"rollouts, log-probs against a packed pass, largest gap in nats, {word}", float(gap.max()),
               1e-3 if exact else 0.2)
    yield line(f"rollouts, log-probs against a packed pass, mean gap in nats, {word}", float(gap.mean()),
               1e-4 if exact else 0.02)


def four_bits(place: Place) -> Iterator[Line]:
    """NF4 of bitsandbytes: its error on normal numbers, and a layer against the matrix that it unpacks to."""
    import bitsandbytes.functional as bnb

    size = place.small(2048, 256)
    torch.manual_seed(0)
    weight = torch.randn(size, size, device=place.device).to(place.dtype)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    unpacked = bnb.dequantize_4bit(packed, state)
    error = distance(unpacked, weight)
    # NF4 in blocks of 64 leaves a tenth of a normal number's spread; none at all would mean nothing was packed.
    yield line("NF4, relative error on normal numbers less 0.1, absolute", abs(error - 0.1), 0.02)
    model = random_model(place, "0.5B", place.dtype)
    before = model.model.layers[0].mlp.down_proj.weight.data.clone()
    layer = in_four_bits(model).model.layers[0].mlp.down_proj
    inputs = torch.randn(5, before.shape[1], device=place.device).to(place.dtype).requires_grad_()
    out = layer(inputs)
    out.sum().backward()
    matrix = bnb.dequantize_4bit(*bnb.quantize_4bit(before, quant_type="nf4", compress_statistics=True)).float()
    tolerance = max(ROUNDING[place.dtype], 1e-3)
    yield line("NF4 layer, forward against its unpacked matrix", distance(out, inputs.float() @ matrix.T), tolerance)
    assert inputs.grad is not None
    expected = matrix.sum(0).expand(5, -1)
    yield line("NF4 layer, gradient against its unpacked matrix", distance(inputs.grad, expected), tolerance)


def half_precision(place: Place) -> Iterator[Line]:
    """Three optimiser steps in fp16 with loss scaling (bf16 on a CPU) against the same in float32."""
    kind = "fp16" if place.device.type == "cuda" else "bf16"
    exact, near = _losses(place, "no"), _losses(place, kind)
    yield line(f"three steps in {kind}, losses against float32", distance(near, exact), 0.02)
    yield line(f"three steps in {kind}, loss of the last over the first", float(near[-1] / near[0]), 1.0)


def compiled(place: Place) -> Iterator[Line]:
    """Three optimiser steps of a policy under torch.compile against the same as it stands."""
    backend = "inductor" if place.device.type == "cuda" else "eager"
    plain = _losses(place, None)
    near = _losses(place, None, torch_compile=True, torch_compile_backend=backend)
    yield line(f"three steps under torch_compile ({backend}), losses against eager", distance(near, plain), 0.02)


def _losses(place: Place, precision: str | None, **keys: Any) -> Tensor:
    """Return the losses of three updates on the same examples; steps that loss scaling skips are not counted."""
    stage = make_stage("sft", {}, trainable(place, "0.5B", Method("full")))
    rows = dialogues(place.shape("0.5B"), log_normal_lengths(place.small(8, 4), place.small(150, 16), 512), 0.6)
    stepper = make_stepper(place, stage, 4096, precision=precision, optim="adamw_torch",
                           learning_rate=1e-3 if place.toy else 2e-5, **keys)
    if precision == "fp16" and stepper.accelerator.scaler is None:
        raise RuntimeError("fp16 runs without loss scaling")
    losses: list[float] = []
    for number in range(15):
        loss = stepper.run(rows.examples, counts=True, step=number + 1).loss
        losses += [] if stepper.optimizer.step_was_skipped else [loss]
        if len(losses) == 3:
            break
    place.clear()
    return torch.tensor(losses)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CHECKS: dict[str, Callable[[Place], Iterator[Line]]] = {
    "attention": attention, "flex": fused_rules, "tree": shared_prompts, "head": vocabulary_head, "rollouts": rollouts,
    "nf4": four_bits, "half": half_precision, "compile": compiled}
