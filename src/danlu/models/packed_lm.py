"""A stock causal LM called on flat token streams: body over segments, head on supervised rows only, one nn.Module.

Distributed wrappers go around `PackedLM`, so that everything that needs a gradient is used inside its forward. The
model inside stays what transformers or peft made it: `.model` saves, generates and loads as ever.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from danlu.core.console import notice
from danlu.models.attention import IMPLEMENTATION, implementation
from danlu.models.head import score_logits, score_with_entropy
from danlu.models.padded import PaddedBatch
from danlu.models.proof import RunPlan, base_of, make_plan, packed_hidden, padded_hidden, randomness
from danlu.models.segments import Layout, in_flight
from danlu.models.stream_tensors import StreamTensors

Output = Literal["nll_sum", "logps", "entropy", "hidden"]


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What a PackedLM does; "undecided" before its first forward.

    layout  packed | padded
    head    tiled | module | model
    notice  why not packed, why not tiled; empty when there is nothing to say
    apart   why a prompt of several answers is computed for each of them; empty when it is computed once
    """

    layout: str
    head: str
    notice: str
    apart: str = ""


class PackedLM(nn.Module):
    """Score the supervised rows of a stream with a transformers or peft causal LM.

    The first forward tries the model on a few tokens and decides how to run it (`report()` tells); it says one notice
    when the model does not serve the packed layout or the tiled head. `label_smoothing` counts in training mode only.
    Where segments of an example share their beginning, it is computed once if that changes no number; who adds noise
    to the inputs while training sets `draws_noise`.
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.draws_noise = False
        self._plan: RunPlan | None = None
        self._own_implementation: str | None = None
        self._random: list[nn.Module] | None = None

    def forward(self, stream: StreamTensors, *, output: Output = "nll_sum") -> Tensor:
        """Return sum_t w_t (-log p(y_t)), a float32 scalar; for "logps" every row's log p(y_t), (R,) float32.

        "entropy" gives log p(y_t) and the entropy of each row's distribution, (2, R) float32. "hidden" gives the body's
        last hidden states of the rows, (R, H), in the model's dtype; no head is touched.
        """
        plan = self._plan or self._decide(stream)
        if output == "hidden":
            return self._hidden_rows(stream, plan, with_head=False)
        if plan.head is None:
            return self._score_by_model(stream, plan, output)
        rows_RH = self._hidden_rows(stream, plan, with_head=True)
        if output == "entropy":
            return plan.head.logps_and_entropy(rows_RH, stream.loss_targets)
        if output == "logps":
            return plan.head.logps(rows_RH, stream.loss_targets)
        smoothing = self.label_smoothing if self.training else 0.0
        return plan.head.nll_sum(rows_RH, stream.loss_targets, stream.loss_weights, label_smoothing=smoothing)

    def report(self) -> LayoutReport:
        """Return the layout and head in use, and the notice if the plain path was taken."""
        if self._plan is None:
            return LayoutReport("undecided", "undecided", "")
        head = self._plan.head
        kind = "model" if head is None else "tiled" if head.is_plain else "module"
        return LayoutReport("packed" if self._plan.packed else "padded", kind, "; ".join(self._plan.reasons),
                            self._plan.apart)

    @contextmanager
    def generation_mode(self) -> Iterator[nn.Module]:
        """Yield the inner model with the attention implementation it was loaded with, for `generate`."""
        if self._own_implementation is None:
            yield self.model
            return
        with implementation(base_of(self.model), self._own_implementation):
            yield self.model

    # torch.compile would trace every trial of the model on the way to the plan
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _decide(self, stream: StreamTensors) -> RunPlan:
        base = base_of(self.model)
        self._plan = plan = make_plan(self.model, stream)
        if plan.packed:
            # set for good: gradient checkpointing looks the implementation up again in the backward pass
            self._own_implementation = base.config._attn_implementation
            base.set_attn_implementation(IMPLEMENTATION)
        for reason in plan.reasons:
            notice(f"{reason}: taking the slower plain path")
        return plan

    def _hidden_rows(self, stream: StreamTensors, plan: RunPlan, *, with_head: bool) -> Tensor:
        """Return the hidden states of the supervised rows, (R, H)."""
        base = base_of(self.model)
        if plan.packed:
            layout = Layout.of(stream, shared=self._shares(stream, plan))
            lean = plan.lean
            cut = lean is not None and lean.cuts(len(layout.input_ids), stream.num_rows, with_head=with_head)
            if lean is not None and lean.serves(layout, cut=cut):
                return lean.hidden(layout, stream.loss_rows, cut=cut)
            return layout.gather(packed_hidden(base, layout), stream.loss_rows)
        batch = PaddedBatch.of(stream)
        return batch.gather(padded_hidden(base, batch), stream.loss_rows)

    def _shares(self, stream: StreamTensors, plan: RunPlan) -> bool:
        """Return whether shared beginnings are computed once; say why not, when there are any."""
        if stream.tree is None:
            return False
        against = plan.apart or self._why_random()
        if against:
            notice(f"{against}: a prompt with several answers is computed for each of them")
        return not against

    def _why_random(self) -> str:
        """Return what would draw one mask for a whole tree where separate segments draw one each; empty: nothing."""
        if not self.training:
            return ""
        if self.draws_noise:
            return "noise is drawn for each segment"
        if self._random is None:
            self._random = randomness(self.model)
        return "dropout is drawn for each segment" if any(one.training for one in self._random) else ""

    def _score_by_model(self, stream: StreamTensors, plan: RunPlan, output: Output) -> Tensor:
        """Let the model make its logits; adds its own auxiliary loss (MoE balancing) to the sum."""
        out, logits_RV = self._own_logits(stream, plan)
        if output == "entropy":
            return score_with_entropy(logits_RV, stream.loss_targets)
        smoothing = self.label_smoothing if self.training and output == "nll_sum" else 0.0
        scores_R = score_logits(logits_RV, stream.loss_targets, smoothing)
        if output == "logps":
            return scores_R
        total = -(scores_R * stream.loss_weights).sum()
        aux_loss = getattr(out, "aux_loss", None)
        if aux_loss is None or not self.training:
            return total
        share = base_of(self.model).config.get_text_config().router_aux_loss_coef
        return total + share * aux_loss * stream.loss_weights.sum()

    def _own_logits(self, stream: StreamTensors, plan: RunPlan) -> tuple[object, Tensor]:
        if not plan.packed:
            batch = PaddedBatch.of(stream)
            out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            return out, batch.gather(out.logits, stream.loss_rows)
        keeps = "logits_to_keep" in inspect.signature(base_of(self.model).forward).parameters
        chosen = {"logits_to_keep": stream.loss_rows} if keeps else {}
        with in_flight(Layout.of(stream, shared=False).segments):
            out = self.model(
                input_ids=stream.input_ids[None], position_ids=stream.position_ids[None], use_cache=False, **chosen)
        logits: Tensor = out.logits[0]
        return out, logits if keeps else logits[stream.loss_rows]
