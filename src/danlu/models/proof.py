"""How a given model may be run, decided by trying: packed or padded, tiled head or the model's own.

Before the first step a dozen tokens in three segments go through the model both ways. The packed layout is taken only
if every layer's attention reached danlu's function and the hidden states agree with those of the padded batch; the
head is taken apart only if its logits agree with the model's own; a shared prompt is computed once only if a small
tree gives the hidden states of its segments; the body is run lean only if the rows of a loss come out alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.core.stream import Example
from danlu.models.adapter_switch import recomputation_contexts
from danlu.models.attention import IMPLEMENTATION, accepts, implementation
from danlu.models.head import VocabularyHead, known_transforms
from danlu.models.lean_body import LeanBody
from danlu.models.padded import PaddedBatch
from danlu.models.segments import Layout, in_flight
from danlu.models.stream_tensors import StreamTensors

PROBE_LENGTHS = (5, 1, 6)
PROBE_PREFIX, PROBE_BRANCHES = 8, (3, 1, 6)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
QUANTISED_TOLERANCE = 5e-2  # int8 picks its outlier columns from the whole batch, padding included
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
FIT_FOR_SEGMENTS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How the model is run.

    packed   attention inside segments of the flat stream; otherwise a right-padded batch
    head     the head taken apart from the body; None: the model makes its own logits
    reasons  why not packed, why not taken apart: one sentence each
    apart    why a shared prompt is computed once for each answer; empty when it is computed once
    lean     the body, where it can be run with fewer passes and fewer rows
    """

    packed: bool
    head: VocabularyHead | None
    reasons: tuple[str, ...] = ()
    apart: str = ""
    lean: LeanBody | None = None


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a possible adapter wrapper."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def body_of(base: PreTrainedModel) -> nn.Module:
    """Return the part of a causal LM below its head; the model itself where it does not part them."""
    body: nn.Module = base.base_model
    return base.get_decoder() if body is base else body


def packed_hidden(base: PreTrainedModel, layout: Layout) -> Tensor:
    """Return the body's last hidden states of all tokens that are computed, (C, H)."""
    with in_flight(layout.segments):
        out = body_of(base)(
            input_ids=layout.input_ids[None], position_ids=layout.position_ids[None], use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden[0]


def padded_hidden(base: PreTrainedModel, batch: PaddedBatch) -> Tensor:
    """Return the body's last hidden states over the padded batch, (S, L, H)."""
    out = body_of(base)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


def make_plan(model: nn.Module, stream: StreamTensors) -> RunPlan:
    """Try the model on a few tokens of `stream` and return how it may be run."""
    base, probe = base_of(model), probe_of(stream)
    batch = PaddedBatch.of(probe)
    everything = torch.arange(probe.num_tokens, device=probe.input_ids.device)
    with evaluating(model), torch.no_grad():
        own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        if body_of(base) in (base, None):
            return RunPlan(False, None, (f"{type(base).__name__} does not part body and head",))
        hidden = batch.gather(padded_hidden(base, batch), everything)
        against = _why_not_packed(base, probe, hidden)
        head, objection = _find_head(model, hidden, batch.gather(own, everything))
        apart = against or _why_apart(base, stream)
        lean, whole = (None, "") if against else _find_lean(base, probe)
    return RunPlan(not against, head, tuple(reason for reason in (against, objection, whole) if reason), apart, lean)


def probe_of(stream: StreamTensors) -> StreamTensors:
    """Return three short segments made of the stream's own first tokens."""
    num_tokens, device = sum(PROBE_LENGTHS), stream.input_ids.device
    ids = stream.input_ids.repeat(-(-num_tokens // max(1, stream.num_tokens)))[:num_tokens]
    positions = torch.cat([torch.arange(n, device=device) for n in PROBE_LENGTHS])
    starts = torch.tensor((0, *PROBE_LENGTHS), dtype=torch.int32, device=device).cumsum(0).to(torch.int32)
    return replace(
        stream, input_ids=ids, position_ids=positions, cu_seqlens=starts, lengths=PROBE_LENGTHS,
        max_length=max(PROBE_LENGTHS), tree=None)


def probe_tree_of(stream: StreamTensors) -> StreamTensors:
    """Return a prefix with three branches and a segment apart, made of the stream's own first tokens."""
    lengths = (*(PROBE_PREFIX + own for own in PROBE_BRANCHES), *PROBE_LENGTHS[:1])
    ids = np.resize(stream.input_ids[:sum(lengths)].cpu().numpy(), sum(lengths))
    for start in np.cumsum(lengths)[:len(PROBE_BRANCHES) - 1]:
        ids[start:start + PROBE_PREFIX] = ids[:PROBE_PREFIX]
    return StreamTensors.of([Example(ids, np.zeros(len(ids), np.bool_), lengths=lengths)]).to(stream.input_ids.device)


def _why_not_packed(base: PreTrainedModel, probe: StreamTensors, expected: Tensor) -> str:
    """Return why the packed layout does not serve this model; empty when it does."""
    name, text = type(base).__name__, base.config.get_text_config()
    layer_types = tuple(getattr(text, "layer_types", None) or ())
    if unfit := sorted(set(layer_types) - FIT_FOR_SEGMENTS):
        return f"{name} has layers of type {', '.join(unfit)}"
    if not accepts(base):
        return f"{name} brings its own attention"
    layout = Layout.of(probe, shared=False, counted=True)
    try:
        with implementation(base, IMPLEMENTATION):
            hidden = packed_hidden(base, layout)
    except (AttributeError, TypeError, IndexError, NotImplementedError, RuntimeError) as error:
        return f"{name} does not run over segments ({type(error).__name__})"
    windows = layout.segments.windows or []
    if len(windows) != text.num_hidden_layers:
        return f"{name} has {text.num_hidden_layers} layers, {len(windows)} of them attend inside segments"
    if sum(window is not None for window in windows) < layer_types.count("sliding_attention"):
        return f"{name} keeps its sliding window in the mask alone"
    return "" if agree(base, hidden, expected) else f"{name} computes something else over segments"


def _why_apart(base: PreTrainedModel, stream: StreamTensors) -> str:
    """Return why segments that share their beginning must be computed apart; empty when they need not."""
    probe, name = probe_tree_of(stream), type(base).__name__
    everything = torch.arange(probe.num_tokens, device=probe.input_ids.device)
    try:
        with implementation(base, IMPLEMENTATION):
            layouts = [Layout.of(probe, shared=shared) for shared in (True, False)]
            once, apart = (layout.gather(packed_hidden(base, layout), everything) for layout in layouts)
    except (IndexError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"{name} does not run over shared prompts ({type(error).__name__})"
    return "" if agree(base, once, apart) else f"{name} computes something else over shared prompts"


def _find_lean(base: PreTrainedModel, probe: StreamTensors) -> tuple[LeanBody | None, str]:
    """Return the lean body of a known family if a few of its rows come out as they do from the whole body; or why not.

    Families that have none need no reason.
    """
    lean, name = LeanBody.of(base, body_of(base)), type(base).__name__
    if lean is None:
        return None, ""
    layout, rows = Layout.of(probe, shared=False), torch.arange(0, probe.num_tokens, 3, device=probe.input_ids.device)
    try:
        with implementation(base, IMPLEMENTATION):
            found, expected = lean.hidden(layout, rows, cut=True), packed_hidden(base, layout)[rows]
    except (AttributeError, TypeError, IndexError, NotImplementedError, RuntimeError) as error:
        return None, f"{name} does not run in its parts ({type(error).__name__})"
    return (lean, "") if agree(base, found, expected) else (None, f"{name} computes something else in its parts")


def randomness(model: nn.Module) -> list[nn.Module]:
    """Return the modules that draw random numbers while they train: dropout, and routers with jitter."""
    return [module for module in model.modules()
            if (isinstance(module, DROPOUTS) and module.p > 0)
            or any(("drop" in name or "jitter" in name) and isinstance(value, float) and value > 0
                   for name, value in vars(module).items())]


def _find_head(model: nn.Module, hidden: Tensor, own: Tensor) -> tuple[VocabularyHead | None, str]:
    """Return the head whose logits equal the model's own, or None and why."""
    base = base_of(model)
    if getattr(base.config.get_text_config(), "output_router_logits", False):
        return None, "the router's balancing loss needs the whole model's forward"
    module = base.get_output_embeddings()
    if module is None:
        return None, f"{type(base).__name__} names no output embedding"
    raw = module(hidden).float()
    for transform in known_transforms(base.config):
        if agree(base, transform.apply(raw), own):
            return VocabularyHead(module, transform, recomputation_contexts(model)), ""
    return None, f"{type(base).__name__} changes its logits after the head"


def agree(base: PreTrainedModel, actual: Tensor, expected: Tensor) -> bool:
    """Return whether two results are equal but for the rounding of their dtype and of quantised weights."""
    tolerance = TOLERANCE.get(coarsest(actual, expected), 1e-4)
    if getattr(base, "is_quantized", False):
        tolerance = max(tolerance, QUANTISED_TOLERANCE)
    worst = (actual.double() - expected.double()).abs().amax()
    return bool(worst <= tolerance * expected.double().abs().amax().clamp(min=1e-6))


def coarsest(*values: Tensor) -> torch.dtype:
    """Return the dtype with the fewest digits among the values and autocast."""
    dtypes: list[Any] = [value.dtype for value in values]
    kind = values[0].device.type
    if torch.is_autocast_enabled(kind):
        dtypes.append(torch.get_autocast_dtype(kind))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode inside the block, each back to its own mode after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
