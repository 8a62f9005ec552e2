"""Matrices, and a LoRA beside one: two thin products, the second added into the matrix's own output (peft's adapters).

    y = W x + s B u,  u = A x                                                Hu et al. 2021, arXiv 2106.09685, Eq. 3
    du = s B^T dy,  dA = du x^T,  dB = s dy u^T,  dx = W^T dy + A^T du

peft makes s B u and the sum as tensors of their own. Thin products are written with the rank in front, (r, C) and
(r, O): BLAS libraries take up to seven times as long for the same product with a rank of 8 behind. So it is with few
rows in float32, which a decoding step has: y^T = W x^T.
Shape legend: C tokens, I inputs and O outputs of the matrix, r rank.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LowRank = tuple[Tensor, Tensor, float]
"""A, (r, I); B, (O, r); s."""
FEW = (2, 128)
"""Rows of a float32 product, from and to, for which a processor takes up to half as long over (W x^T)^T as x W^T."""
PACKED = ("Linear4bit",)


def project(module: Any, inputs_CI: Tensor) -> Tensor:
    """Return what `module` returns, (C, O): lean for a plain adapter on a plain or 4-bit matrix, and for few rows."""
    adapter = adapter_of(module, inputs_CI)
    base = module if adapter is None else module.base_layer
    if type(base) is nn.Linear and is_few(inputs_CI) and not is_hooked(base):
        return project_few(base, inputs_CI, adapter)
    if adapter is None:
        out: Tensor = module(inputs_CI)
        return out
    base_CO = base(inputs_CI)
    if type(base) is not nn.Linear:
        base_CO = base_CO.clone()  # a 4-bit product may hand out a view, which autograd lets nobody change
    return add_low_rank(base_CO, inputs_CI, *adapter)


def adapter_of(module: Any, inputs_CI: Tensor) -> LowRank | None:
    """Return the adapter that acts in a module, if nothing is to be done but y = W x + s B A x."""
    name = plain_adapter(module)
    if name is None:
        return None
    down_rI, up_Or = module.lora_A[name].weight, module.lora_B[name].weight
    # without autocast peft computes an adapter in its own dtype and rounds once
    is_mixed = down_rI.dtype != inputs_CI.dtype and not torch.is_autocast_enabled(inputs_CI.device.type)
    return None if is_mixed else (down_rI, up_Or, module.scaling[name])


def is_few(inputs_CI: Tensor) -> bool:
    """Return whether a processor had better multiply the other way round: few rows in float32, and no gradient."""
    is_float32 = inputs_CI.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    is_in_range = FEW[0] <= len(inputs_CI) <= FEW[1]
    return inputs_CI.device.type == "cpu" and is_float32 and is_in_range and not torch.is_grad_enabled()


def project_few(base: nn.Linear, inputs_CI: Tensor, adapter: LowRank | None) -> Tensor:
    """Return (W x^T)^T, (C, O), with the part of an adapter added."""
    inputs_IC = inputs_CI.t()
    out_OC = base.weight @ inputs_IC
    if base.bias is not None:
        out_OC += base.bias[:, None]
    if adapter is not None:
        down_rI, up_Or, scale = adapter
        out_OC.addmm_(up_Or.to(out_OC.dtype), down_rI @ inputs_IC, alpha=scale)
    return out_OC.t()


def plain_adapter(module: Any) -> str | None:
    """Return the name of that adapter; None where another acts as well, drops out, or is listened to."""
    if not isinstance(module, LoraLayer) or module.disable_adapters or module.merged:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    base = module.base_layer
    is_known = type(module) is LoraLinear and type(base) is nn.Linear or type(base).__name__ in PACKED
    if len(active) != 1 or not is_known or active[0] in module.lora_variant:
        return None
    down, up, dropout = (part[active[0]] for part in (module.lora_A, module.lora_B, module.lora_dropout))
    is_still = isinstance(dropout, nn.Identity) or not dropout.training
    is_bare = type(down) is type(up) is nn.Linear and down.bias is None and up.bias is None
    hooked = any(is_hooked(one) for one in (module, base, down, up, dropout))
    return active[0] if is_still and is_bare and not hooked else None


def is_hooked(module: nn.Module) -> bool:
    """Return whether something is to happen around a module's own forward or backward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks or hasattr(module, "_hf_hook"))


def add_low_rank(out_CO: Tensor, inputs_CI: Tensor, down_rI: Tensor, up_Or: Tensor, scale: float) -> Tensor:
    """Return out + scale B A x, (C, O), in the memory and dtype of `out`, which nobody else may need."""
    added: Tensor = _LowRank.apply(out_CO, inputs_CI, down_rI, up_Or, scale)
    return added


class _LowRank(torch.autograd.Function):
    """Keeps the inputs and u."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, out: Tensor, inputs: Tensor, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.mark_dirty(out)
        with torch.autocast(out.device.type, enabled=False):
            inner_rC = down.to(out.dtype) @ inputs.to(out.dtype).t()
            out.addmm_(inner_rC.t(), up.to(out.dtype).t(), alpha=scale)
        ctx.save_for_backward(inputs, down, up, inner_rC)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, down, up, inner_rC = ctx.saved_tensors
        _, wants_inputs, wants_down, wants_up, _ = ctx.needs_input_grad
        with torch.autocast(upstream.device.type, enabled=False):
            d_inner_rC = (up.to(upstream.dtype).t() @ upstream.t()).mul_(ctx.scale)
            d_inputs = (d_inner_rC.t() @ down.to(upstream.dtype)).to(inputs.dtype) if wants_inputs else None
            d_down = (d_inner_rC @ inputs.to(upstream.dtype)).to(down.dtype) if wants_down else None
            d_up = (inner_rC @ upstream).mul_(ctx.scale).t().to(up.dtype) if wants_up else None
        return upstream, d_inputs, d_down, d_up, None
