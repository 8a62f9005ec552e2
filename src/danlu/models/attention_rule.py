"""How attention's scores become weights, and in which dtype: what every way of attending is told."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores become weights.

    scale    factor of q k^T; None is 1/sqrt(D)
    window   a token sees itself and window-1 tokens before it; None sees all of them
    softcap  scores become c tanh(score / c) (Gemma 2, arXiv 2408.00118, section 2)
    sinks    (H,) one learned score a head that takes weight and gives nothing (gpt-oss)
    dropout  share of attention weights dropped
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def is_plain(self) -> bool:
        """True when a fused kernel computes this rule: no soft-capping, no sinks."""
        return self.softcap is None and self.sinks is None


def kernel_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype attention runs in: under autocast rotary embeddings may have left the query in float32."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
