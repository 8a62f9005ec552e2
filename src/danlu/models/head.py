"""The vocabulary head of a stock model: which module it is, what the family does to its output, how rows are scored.

Three ways, the first that serves: `tiled` takes the weight of a plain linear head and never keeps logits; `module`
calls a wrapped head (LoRA, modules_to_save, quantised, sharded) tile by tile and recomputes each tile in the backward
pass; where neither reproduces the model's own logits, the caller lets the model make them (`model`).

Shape legend: R rows, H hidden, V vocabulary, t rows of one tile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers import PreTrainedConfig

from danlu.losses.linear_cross_entropy import linear_cross_entropy, linear_logps
from danlu.losses.logit_transform import LogitTransform
from danlu.losses.vocabulary_sweep import tile_rows_for
from danlu.models.lean_adapter import is_hooked

WRAPPED_TILE_ROWS = 256
"""A wrapped head makes several tensors of a tile's logits, and may have no gradient of the head's size to add to."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class VocabularyHead:
    """A head module with the family's logit transform; `contexts` are those of a tile and of its recomputation."""

    module: nn.Module
    transform: LogitTransform
    contexts: Callable[[], Any] = noop_context_fn

    @property
    def is_plain(self) -> bool:
        """True for an unwrapped, unsharded linear layer without hooks, whose weight may be used directly."""
        return type(self.module) is nn.Linear and not is_hooked(self.module) and not is_sharded(self.module)

    def nll_sum(self, hidden_RH: Tensor, targets_R: Tensor, weights_R: Tensor, *, label_smoothing: float) -> Tensor:
        """Return sum_t w_t nll_t, a float32 scalar."""
        if self.is_plain:
            return linear_cross_entropy(
                hidden_RH, self.module.weight, targets_R, weights_R, bias_V=self.module.bias,
                transform=self.transform, label_smoothing=label_smoothing)
        rows = self._score(hidden_RH, targets_R, label_smoothing)
        return -(rows * weights_R).sum()

    def logps(self, hidden_RH: Tensor, targets_R: Tensor) -> Tensor:
        """Return log p(y_t) of each row, (R,) float32."""
        if self.is_plain:
            return linear_logps(
                hidden_RH, self.module.weight, targets_R, bias_V=self.module.bias, transform=self.transform)
        return self._score(hidden_RH, targets_R, 0.0)

    def logps_and_entropy(self, hidden_RH: Tensor, targets_R: Tensor) -> Tensor:
        """Return log p(y_t) and the entropy of p of each row, (2, R) float32."""
        return self._by_tiles(score_with_entropy, hidden_RH, targets_R)

    def _score(self, hidden_RH: Tensor, targets_R: Tensor, label_smoothing: float) -> Tensor:
        return self._by_tiles(partial(score_logits, label_smoothing=label_smoothing), hidden_RH, targets_R)

    def _by_tiles(self, score: Callable[[Tensor, Tensor], Tensor], hidden_RH: Tensor, targets_R: Tensor) -> Tensor:
        """Call the head module on tiles of rows; at least once, so that all its parameters take part everywhere."""
        def score_tile(hidden_tH: Tensor, targets_t: Tensor) -> Tensor:
            return score(self.transform.apply(as_logps_dtype(self.module(hidden_tH))), targets_t)

        if is_sharded(self.module):  # each call gathers the weight on all ranks, which hold unequal numbers of rows
            return score_tile(hidden_RH, targets_R)
        size = tile_rows_for(len(hidden_RH), _num_outputs(self.module), hidden_RH.device, at_least=WRAPPED_TILE_ROWS)
        tiles = zip(hidden_RH.split(size), targets_R.split(size), strict=True)
        scored = [checkpoint(score_tile, h, y, use_reentrant=False, context_fn=self.contexts) for h, y in tiles]
        return torch.cat(scored, dim=-1)


def score_logits(logits_RV: Tensor, targets_R: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return (1 - eps) log p(y_t) + eps mean_v log p(v) of each row, (R,)."""
    logps_RV = F.log_softmax(as_logps_dtype(logits_RV), dim=-1)
    chosen_R = logps_RV.gather(1, targets_R[:, None]).squeeze(1)
    if not label_smoothing:
        return chosen_R
    return (1.0 - label_smoothing) * chosen_R + label_smoothing * logps_RV.mean(1)


def score_with_entropy(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Return log p(y_t) and -sum_v p(v) log p(v) of each row, (2, R)."""
    logps_RV = F.log_softmax(as_logps_dtype(logits_RV), dim=-1)
    entropy_R = -(logps_RV.exp() * logps_RV).sum(-1)
    return torch.stack([logps_RV.gather(1, targets_R[:, None]).squeeze(1), entropy_R])


def as_logps_dtype(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 when they have it."""
    return values if values.dtype == torch.float64 else values.float()


def is_sharded(module: nn.Module) -> bool:
    """Return whether a parameter lives in pieces on several ranks (FSDP2's DTensor, DeepSpeed ZeRO-3)."""
    return any(hasattr(p, "ds_id") or type(p.data).__name__ == "DTensor" for p in module.parameters())


def _num_outputs(module: nn.Module) -> int:
    """Return the vocabulary size a head maps to, as far as its attributes say; a large one otherwise."""
    return int(getattr(module, "out_features", 0)) or max((int(p.shape[0]) for p in module.parameters()), default=2**17)


def known_transforms(config: PreTrainedConfig) -> list[LogitTransform]:
    """Return what a family with this config may do to its logits, likeliest first.

    Soft-capping: Gemma 2, RecurrentGemma, xLSTM. `logit_scale`: Cohere. `logits_scaling`: Granite divides by it,
    HyperCLOVA X multiplies. `lm_head_multiplier`: Falcon H1. `output_multiplier`: muP families.
    """
    text: Any = config.get_text_config()
    softcap = next((value for name in SOFTCAPS if (value := getattr(text, name, None))), None)
    named = (getattr(text, name, None) for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"))
    scales = [float(scale) for scale in named if scale]
    if divisor := getattr(text, "logits_scaling", None):
        scales += [1.0 / divisor, float(divisor)]
    scales.append(1.0)
    return [LogitTransform(scale, softcap) for scale in scales] + ([LogitTransform()] if softcap else [])
