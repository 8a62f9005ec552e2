"""Which number format computes and which one stores, as the device allows. Master weights stay float32."""

import ctypes
import os
from dataclasses import dataclass

import torch

from danlu.core.errors import CapabilityError, ConfigError

KERNELS_KEPT = 256
"""Those of some ten lengths of micro-batches: 15 of the linear layers in either direction, 6 of the head."""

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
"""Names of malloc.h."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The formats of a run.

    compute_dtype  of matrix products, activations and frozen weights
    autocast       True when the forward pass runs under torch.autocast(compute_dtype)
    scaler         True when gradients need loss scaling (float16 only)
    notice         what differs from the request, or ""
    """

    compute_dtype: torch.dtype
    autocast: bool
    scaler: bool = False
    notice: str = ""


def resolve_precision(*, bf16: bool, fp16: bool, pure_bf16: bool = False, device: torch.device) -> Precision:
    """Turn the user's switches into formats that `device` can compute.

    Raises ConfigError for two switches at once and CapabilityError for bf16 on a GPU without it.
    """
    if fp16 and (bf16 or pure_bf16):
        raise ConfigError("fp16 and bf16 are both on", where="fp16", fix="keep one of them")
    if pure_bf16:
        _check_bf16(device)
        return Precision(torch.bfloat16, autocast=False)
    if bf16:
        _check_bf16(device)
        return Precision(torch.bfloat16, autocast=True)
    if not fp16:
        return Precision(torch.float32, autocast=False)
    if device.type == "cpu":
        return _instead_of_fp16_on_cpu()
    return Precision(torch.float16, autocast=True, scaler=True)


def resolve_inference_dtype(infer_dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype for answering: `auto` is bf16 on a GPU that has it, float16 on others, float32 on CPU."""
    if infer_dtype != "auto":
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[infer_dtype]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def bound_kernel_cache() -> None:
    """Let oneDNN keep fewer kernels than its 1024, one for each shape of a 16-bit product that it ever met.

    Lengths differ from batch to batch, so that old kernels are seldom met again and hold hundreds of MiB. A user's own
    setting stands. Call it before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))


def keep_freed_memory() -> None:
    """Let the C library of this process hand freed memory out again at once instead of returning it to the system.

    By default each tensor of more than 32 MiB is asked of the system, which fills every page with zeros anew: a third
    of a bf16 step with a large vocabulary. What is free at the end of the heap goes back from 2 GiB on, what lies
    below a tensor in use stays. A user's own MALLOC_* or GLIBC_TUNABLES stand; other C libraries are left alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cpu_has_fast_bf16() -> bool:
    """Return True when the processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _instead_of_fp16_on_cpu() -> Precision:
    head = "fp16 needs a GPU; on this CPU the run computes in "
    if cpu_has_fast_bf16():
        return Precision(torch.bfloat16, autocast=True, notice=head + "bf16")
    return Precision(torch.float32, autocast=False, notice=head + "fp32, as it has no fast bf16")


def _check_bf16(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise CapabilityError(f"{name} cannot compute in bf16", where="bf16", fix="set fp16: true and bf16: false")
