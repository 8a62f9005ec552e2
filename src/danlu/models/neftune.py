"""NEFTune (Jain et al. 2023, arXiv:2310.05914): noise on the input embeddings while training.

    X' = X + alpha / sqrt(L d) * epsilon,   epsilon ~ Uniform(-1, 1)                     # Section 2
L is the length of each sequence, so that in a packed stream a segment gets the noise it would get alone.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from danlu.models.packed_lm import PackedLM
from danlu.models.proof import base_of
from danlu.models.stream_tensors import StreamTensors


class EmbeddingNoise:
    """Adds the noise through two hooks: one learns the segments of a stream, one changes its embeddings."""

    def __init__(self, policy: PackedLM, alpha: float) -> None:
        self.alpha = alpha
        self._lengths: tuple[int, ...] = ()
        self._policy = policy
        policy.draws_noise = True
        embedding = base_of(policy.model).get_input_embeddings()
        self._handles: tuple[RemovableHandle, ...] = (
            policy.register_forward_pre_hook(self._see_stream, with_kwargs=True),
            embedding.register_forward_hook(self._add_noise))

    def remove(self) -> None:
        """Take the hooks off again."""
        self._policy.draws_noise = False
        for handle in self._handles:
            handle.remove()

    def _see_stream(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        stream = args[0] if args else kwargs["stream"]
        assert isinstance(stream, StreamTensors)
        self._lengths = stream.lengths

    def _add_noise(self, module: nn.Module, args: tuple[object, ...], embedded_BTH: Tensor) -> Tensor | None:
        if not module.training:
            return None
        length_BT = self._lengths_like(embedded_BTH)
        scale_BT = self.alpha / (length_BT * embedded_BTH.shape[-1]).sqrt()
        noise_BTH = torch.empty_like(embedded_BTH).uniform_(-1.0, 1.0)
        return embedded_BTH + noise_BTH * scale_BT[..., None].to(embedded_BTH.dtype)

    def _lengths_like(self, embedded_BTH: Tensor) -> Tensor:
        """Return the length of the sequence that each token belongs to, (B, T) or (B, 1)."""
        batch, width, _ = embedded_BTH.shape
        lengths = torch.tensor(self._lengths, dtype=torch.float32, device=embedded_BTH.device)
        if batch == 1 and width == sum(self._lengths):
            return lengths.repeat_interleave(lengths.long(), output_size=width)[None]
        if batch == len(self._lengths):
            return lengths[:, None]
        return torch.full((1, 1), float(width), device=embedded_BTH.device)


def add_embedding_noise(policy: PackedLM, alpha: float | None) -> EmbeddingNoise | None:
    """Switch NEFTune on for a policy in training mode; None or 0 leaves it off."""
    return EmbeddingNoise(policy, alpha) if alpha else None
