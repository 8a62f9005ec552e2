"""What a model family does to the logits of its vocabulary head."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model family does to the head's output: multiply by `scale`, then squash into (-softcap, softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Return the transformed logits; differentiable."""
        logits = logits * self.scale if self.scale != 1.0 else logits
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place."""
        logits = logits.mul_(self.scale) if self.scale != 1.0 else logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap) if self.softcap else logits

    def bend(self, logits: Tensor) -> Tensor | None:
        """Return d z / d (h W^T + b) over s at the transformed logits z: 1 - (z / c)^2; None where it is 1."""
        return logits.div(self.softcap).square_().neg_().add_(1.0) if self.softcap else None


IDENTITY = LogitTransform()
