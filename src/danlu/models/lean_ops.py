"""Root-mean-square norm and rotary embedding with their gradients written out: few passes over memory.

    y = w o x^ ,  x^ = x / sqrt(mean(x^2) + eps)                        Zhang & Sennrich 2019, arXiv 1910.07467, Eq. 4
    dw = sum_t dy o x^ ,  dx = (w o dy - x^ mean(w o dy o x^)) / sqrt(mean(x^2) + eps)

    (a, b) -> (a cos - b sin, b cos + a sin)                            Su et al. 2021, arXiv 2104.09864, Eq. 34
    its gradient is the turn back: sin changes its sign

Stock model code makes each step a pass of its own and keeps what every step needs. Both compute in float32 at least,
and give their result in the dtype of the product that follows. Shape legend: C tokens, N heads, X features of a norm.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(hidden_CX: Tensor, weight_X: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the norm of the last dimension, any number of dimensions before it, in `dtype`."""
    normed: Tensor = _RMSNorm.apply(hidden_CX, weight_X, eps, dtype)
    return normed


def rotate(states_CNX: Tensor, cos_CX: Tensor, sin_CX: Tensor, dtype: torch.dtype) -> Tensor:
    """Return queries or keys turned by their positions, halves of a head being the two coordinates, in `dtype`."""
    turned: Tensor = _Rotation.apply(states_CNX, cos_CX[:, None], sin_CX[:, None], dtype)
    return turned


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _RMSNorm(torch.autograd.Function):
    """Keeps its input, which the residual stream holds anyway, and one number a token."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        exact = hidden.to(_at_least_float32(hidden.dtype))
        squares = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_()
        scale = squares.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        unit = torch.mul(exact, scale)
        if hidden.dtype != exact.dtype:
            unit = unit.to(hidden.dtype).to(exact.dtype)  # families round before the weight
        return unit.mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, scale = ctx.saved_tensors
        upstream = upstream.to(scale.dtype)
        unit = hidden * scale
        product = upstream * unit
        mean = (product @ weight.to(product.dtype)).div_(hidden.shape[-1]).unsqueeze(-1)
        d_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        d_hidden = torch.mul(upstream, weight, out=product).addcmul_(unit, mean, value=-1.0).mul_(scale)
        return d_hidden.to(hidden.dtype), d_weight, None, None


class _Rotation(torch.autograd.Function):
    """Keeps nothing but the angles."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        return _turned(states, cos, sin, -1.0).to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        # each coordinate is multiplied by the sine of the other's row of the matrix, so the halves change places
        return _turned(upstream, cos, sin.roll(sin.shape[-1] // 2, -1), 1.0).to(ctx.dtype), None, None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Return (a cos + sign b sin, b cos - sign a sin) of the halves (a, b)."""
    states = states.to(_at_least_float32(states.dtype))
    half = states.shape[-1] // 2
    out = torch.empty_like(states, memory_format=torch.contiguous_format)
    low, high = slice(None, half), slice(half, None)
    for own, other, toward in ((low, high, sign), (high, low, -sign)):
        torch.mul(states[..., own], cos[..., own], out=out[..., own])
        out[..., own].addcmul_(states[..., other], sin[..., own], value=toward)
    return out
