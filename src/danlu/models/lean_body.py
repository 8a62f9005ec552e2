"""A known family's body run layer by layer on the family's own submodules: fewer passes, and fewer rows at the end.

Serves families whose layer is x + attention(norm x), then x + mlp(norm x); each model proves it before the first step.
Two savings, either alone where only one serves:

    On a processor norms, rotary embeddings and adapters take few passes over memory (`lean_ops`, `lean_adapter`). On a
    GPU `torch_compile` fuses them, and the layers stay as they are.

    Where a loss reads few rows the last layer's MLP and the final norm run on those alone: no later layer looks at the
    others. Worth it in shallow models and for reward models, which read one row a segment. What is left, the last
    layer's Q and O at the other rows, is 1 to 3 % of such a body and not worth a mask of its own.

Slots of the rollout engine decode through the same parts, with attention of their own (`attended`).

Shape legend: C computed tokens, R rows, H hidden, N heads, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.models.attention_rule import kernel_dtype
from danlu.models.head import is_sharded
from danlu.models.lean_adapter import is_hooked, project
from danlu.models.lean_ops import rms_norm, rotate
from danlu.models.segment_attention import Rule, attend_segments
from danlu.models.segments import Layout, Segments

Look = Callable[[Tensor, Tensor, Tensor, Rule], Tensor]
"""Attention: queries (1, N, C, D), keys and values of C tokens, and the layer's rule, to (1, C, N, D)."""
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
SMALLEST_GAIN = 0.05
ROUND_TO = 32
"""Tokens of a 16-bit pass on a processor: oneDNN prepares a kernel for each shape of a product, which costs more than
the rows added, and finds those of a shape met before."""


@dataclass(frozen=True, slots=True)
class LeanBody:
    """A body that may be run this way.

    family      the name that its classes begin with
    mlp_share   the last layer's MLP, as a share of the weights of all layers
    head_share  the vocabulary head in the same unit
    """

    body: nn.Module
    family: str
    mlp_share: float
    head_share: float

    @classmethod
    def of(cls, base: PreTrainedModel, body: nn.Module) -> "LeanBody | None":
        """Return the body of a family that is served; None for others, and under hooks or shards."""
        layers: Any = getattr(body, "layers", None)
        family = type(body).__name__.removesuffix("Model")
        if family not in FAMILIES or not len(layers) or is_sharded(body):
            return None
        is_whole = len(layers) == base.config.get_text_config().num_hidden_layers
        if not is_whole or not is_own(body, family):
            return None
        head, weights = base.get_output_embeddings(), num_weights(layers)
        head_share = num_weights(head) / weights if head is not None else 0.0
        return cls(body, family, num_weights(layers[-1].mlp) / weights, head_share)

    def cuts(self, num_tokens: int, num_rows: int, *, with_head: bool) -> bool:
        """Return whether the weights not used are at least 5 % of all; never where the layer is to be checkpointed."""
        last: Any = self.body.layers[-1]  # type: ignore[index, union-attr]
        if last.training and last.gradient_checkpointing:
            return False
        work = num_tokens + (num_rows * self.head_share if with_head else 0.0)
        return (num_tokens - num_rows) * self.mlp_share >= SMALLEST_GAIN * work

    def serves(self, layout: Layout, *, cut: bool) -> bool:
        """Return whether anything is saved; never while somebody listens to what would be passed by."""
        layers: Any = self.body.layers
        saves = cut or any(is_fused(layer, layout.input_ids.device) for layer in layers)
        return saves and is_own(self.body, self.family)

    def hidden(self, layout: Layout, rows_R: Tensor, *, cut: bool) -> Tensor:
        """Return the body's last hidden states of positions of the plain stream, (R, H).

        cut  run the last layer's MLP and the final norm on these rows alone
        """
        body: Any = self.body
        hidden_CH = body.embed_tokens(layout.input_ids[None])[0]  # what listens to it sees the plain stream
        if hidden_CH.device.type == "cpu" and kernel_dtype(hidden_CH).itemsize == 2:
            layout = layout.rounded(ROUND_TO)
            hidden_CH = F.pad(hidden_CH, (0, 0, 0, len(layout.input_ids) - len(hidden_CH)))
        cos_1CD, sin_1CD = body.rotary_emb(hidden_CH[None], position_ids=layout.position_ids[None])
        shared = Shared(self.family, (cos_1CD, sin_1CD), partial(_inside, layout.segments), {
            "attention_mask": layout.segments, "position_ids": layout.position_ids[None], "use_cache": False,
            "position_embeddings": (cos_1CD, sin_1CD)})
        last = body.layers[-1]
        for layer in body.layers[:-1]:
            hidden_CH = shared.run(layer, hidden_CH)
        if not cut:
            return final_norm(body, layout.gather(shared.run(last, hidden_CH), rows_R))
        hidden_RH = layout.gather(shared.attend(last, hidden_CH), rows_R)
        return final_norm(body, feed_forward(last, hidden_RH))

    def is_lean(self, base: PreTrainedModel) -> bool:
        """Return whether every layer is run in its parts, and nobody listens to these or to the model around them."""
        layers: Any = self.body.layers
        device = next(self.body.parameters()).device
        return (not is_hooked(base) and is_own(self.body, self.family)
                and all(is_fused(layer, device) for layer in layers))

    def attended(self, ids_C: Tensor, positions_C: Tensor, look: Look) -> Tensor:
        """Return the last hidden states, (C, H), with attention of the caller's own; only where `is_lean()`."""
        body: Any = self.body
        hidden_CH = body.embed_tokens(ids_C[None])[0]
        shared = Shared(self.family, body.rotary_emb(hidden_CH[None], position_ids=positions_C[None]), look, {})
        for layer in body.layers:
            hidden_CH = shared.run(layer, hidden_CH)
        return final_norm(body, hidden_CH)


def is_own(body: nn.Module, family: str) -> bool:
    """Return whether all layers are plain, and nobody listens to the body."""
    layers: Any = body.layers
    return not is_hooked(body) and all(is_plain(layer, family) for layer in layers)


def is_plain(layer: Any, family: str) -> bool:
    """Return whether a layer, its attention, MLP and norms are the family's own; none but the MLP may have hooks."""
    attention = layer.self_attn
    norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    kinds = {"DecoderLayer": [layer], "Attention": [attention], "RMSNorm": norms}
    own = all(type(one).__name__ == family + kind and not is_hooked(one)
              for kind, ones in kinds.items() for one in ones)
    return own and type(layer.mlp).__name__ == f"{family}MLP"


def is_fused(layer: Any, device: torch.device) -> bool:
    """Return whether a layer is run in its parts: on a processor, unless it or its parts are compiled."""
    return device.type == "cpu" and all(one._compiled_call_impl is None for one in (layer, *layer.children()))


@dataclass(frozen=True, slots=True)
class Shared:
    """What every layer of a pass is given.

    turn       cosine and sine of each token's position, (1, C, D)
    look       attention of queries to keys and values
    arguments  what a layer that is not run in its parts is called with
    """

    family: str
    turn: tuple[Tensor, Tensor]
    look: Look
    arguments: dict[str, Any]

    def run(self, layer: Any, hidden_CH: Tensor) -> Tensor:
        """Return a layer's output, (C, H)."""
        if is_fused(layer, hidden_CH.device):
            if layer.training and layer.gradient_checkpointing and torch.is_grad_enabled():
                kept: Tensor = layer._gradient_checkpointing_func(partial(self._run_parts, layer), hidden_CH)
                return kept
            return self._run_parts(layer, hidden_CH)
        out: Tensor = layer(hidden_CH[None], **self.arguments)
        return out[0]

    def _run_parts(self, layer: Any, hidden_CH: Tensor) -> Tensor:
        return feed_forward(layer, self.attend(layer, hidden_CH))

    def attend(self, layer: Any, hidden_CH: Tensor) -> Tensor:
        """Return the residual stream behind a layer's attention, (C, H)."""
        if not is_fused(layer, hidden_CH.device):
            attended_1CH, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden_CH[None]), **self.arguments)
            return hidden_CH + attended_1CH[0]
        attention, dtype = layer.self_attn, kernel_dtype(hidden_CH)
        normed_CH = normed(layer.input_layernorm, hidden_CH, dtype)
        query_CND, key_CND, value_CND = (
            project(one, normed_CH).unflatten(-1, (-1, attention.head_dim))
            for one in (attention.q_proj, attention.k_proj, attention.v_proj))
        if hasattr(attention, "q_norm"):  # Qwen3
            query_CND = normed(attention.q_norm, query_CND, query_CND.dtype)
            key_CND = normed(attention.k_norm, key_CND, key_CND.dtype)
        cos_1CD, sin_1CD = self.turn
        # one dtype for all three, unless autocast gives them one
        turned = torch.float32 if torch.is_autocast_enabled("cpu") else value_CND.dtype
        query_CND, key_CND = (rotate(one, cos_1CD[0], sin_1CD[0], turned) for one in (query_CND, key_CND))
        query_1NCD, key_1NCD, value_1NCD = (
            one.transpose(0, 1)[None] for one in (query_CND, key_CND, value_CND))
        rule = Rule(attention.scaling, window_of(attention, self.family),
                    dropout=attention.attention_dropout if attention.training else 0.0)
        attended_1CND = self.look(query_1NCD, key_1NCD, value_1NCD, rule)
        return hidden_CH + project(attention.o_proj, attended_1CND[0].flatten(1))


def _inside(segments: Segments, query_1NCD: Tensor, key_1NCD: Tensor, value_1NCD: Tensor, rule: Rule) -> Tensor:
    return attend_segments(query_1NCD, key_1NCD, value_1NCD, segments, rule)


def feed_forward(layer: Any, hidden_XH: Tensor) -> Tensor:
    """Return x + mlp(norm x)."""
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    if not is_fused(layer, hidden_XH.device):
        out: Tensor = hidden_XH + mlp(norm(hidden_XH))
        return out
    normed_XH = normed(norm, hidden_XH, kernel_dtype(hidden_XH))
    if is_hooked(mlp):
        return hidden_XH + mlp(normed_XH)
    gated = mlp.act_fn(project(mlp.gate_proj, normed_XH)) * project(mlp.up_proj, normed_XH)
    return hidden_XH + project(mlp.down_proj, gated)


def final_norm(body: Any, hidden_RH: Tensor) -> Tensor:
    """Return the norm behind the last layer."""
    out: Tensor = body.norm(hidden_RH)
    return out


def normed(norm: Any, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Call a family's norm in its fused form; weights wider than the stream (`upcast_layernorm`) decide the dtype."""
    widest = torch.promote_types(hidden.dtype, norm.weight.dtype)
    return rms_norm(hidden, norm.weight, norm.variance_epsilon, dtype if widest == hidden.dtype else widest)


def window_of(attention: Any, family: str) -> int | None:
    """Return the sliding window of a layer; a key of that name in a Llama's config means nothing to a Llama."""
    named_in = {"Mistral": attention.config, "Qwen2": attention, "Qwen3": attention}.get(family)
    window: int | None = getattr(named_in, "sliding_window", None)
    return window


def num_weights(module: nn.Module) -> int:
    """Return the entries of a module's matrices."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)
