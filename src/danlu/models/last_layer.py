"""The last decoder layer where a loss reads few rows: attention everywhere, its MLP and the final norm on those rows.

No later layer looks at the other rows, so nothing is lost. Serves families whose layer is x + attention(norm x), then
x + mlp(norm x), by running their own submodules; each model proves it before the first step. Worth it in shallow
models and for reward models, which read one row a segment. Shape legend: C computed tokens, R rows, H hidden.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from danlu.models.head import is_sharded
from danlu.models.segments import Layout

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
SMALLEST_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class LastLayer:
    """A body whose last layer can be run on rows.

    mlp_share   the last layer's MLP, as a share of the weights of all layers
    head_share  the vocabulary head in the same unit
    """

    body: nn.Module
    mlp_share: float
    head_share: float

    @classmethod
    def of(cls, base: PreTrainedModel, body: nn.Module) -> "LastLayer | None":
        """Return the last layer of a family that is served; None for others, and under hooks or shards."""
        layers: Any = getattr(body, "layers", None)
        if type(body).__name__ not in [f"{family}Model" for family in FAMILIES] or not len(layers):
            return None
        last = layers[-1]
        hooked = any(one._forward_hooks or one._forward_pre_hooks or hasattr(one, "_hf_hook") for one in (body, last))
        if hooked or is_sharded(last) or len(layers) != base.config.get_text_config().num_hidden_layers:
            return None
        head, weights = base.get_output_embeddings(), num_weights(layers)
        return cls(body, num_weights(last.mlp) / weights, num_weights(head) / weights if head is not None else 0.0)

    def pays(self, num_tokens: int, num_rows: int, *, with_head: bool) -> bool:
        """Return whether the weights not used are at least 5 % of all; never where the layer is to be checkpointed."""
        last: Any = self.body.layers[-1]  # type: ignore[index, union-attr]
        if last.training and last.gradient_checkpointing:
            return False
        work = num_tokens + (num_rows * self.head_share if with_head else 0.0)
        return (num_tokens - num_rows) * self.mlp_share >= SMALLEST_GAIN * work

    def hidden(self, layout: Layout, rows_R: Tensor) -> Tensor:
        """Return the body's last hidden states of positions of the plain stream, (R, H)."""
        body: Any = self.body
        hidden_1CH, positions_1C = body.embed_tokens(layout.input_ids[None]), layout.position_ids[None]
        shared = {"attention_mask": layout.segments, "position_ids": positions_1C, "use_cache": False,
                  "position_embeddings": body.rotary_emb(hidden_1CH, position_ids=positions_1C)}
        for layer in body.layers[:-1]:
            hidden_1CH = layer(hidden_1CH, **shared)
        last = body.layers[-1]
        attended_1CH, _ = last.self_attn(hidden_states=last.input_layernorm(hidden_1CH), **shared)
        hidden_RH = layout.gather((hidden_1CH + attended_1CH)[0], rows_R)
        normed: Tensor = body.norm(hidden_RH + last.mlp(last.post_attention_layernorm(hidden_RH)))
        return normed


def num_weights(module: nn.Module) -> int:
    """Return the entries of a module's matrices."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)
