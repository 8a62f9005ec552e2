"""What `bf16: auto` comes to: bfloat16 where the device multiplies it itself and the loss stays what it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from danlu.core.stream import Example
from danlu.models.packed_lm import PackedLM
from danlu.models.precision import cpu_has_fast_bf16
from danlu.models.proof import evaluating
from danlu.models.stream_tensors import StreamTensors

LARGEST_GAP = 0.01
"""Share of the float32 loss by which the loss in bfloat16 may differ."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether the run computes in bfloat16, and the line that says why."""

    is_on: bool
    why: str


def choose_bf16(device: torch.device, gap: Callable[[], float] | None, *, is_fast: bool, is_alone: bool) -> Choice:
    """Return what to compute in; a processor is asked for the trial's numbers, a GPU is not.

    gap       runs the trial: |L_bf16 - L_fp32| / L_fp32; None when there is nothing to try it on
    is_fast   whether the device multiplies bfloat16 itself
    is_alone  False with several processes, which could decide differently
    """
    if not is_fast:
        return Choice(False, f"bf16: auto computes in fp32, as this {_name(device)} does not multiply bfloat16 itself")
    if device.type != "cpu":
        return Choice(True, "bf16: auto computes in bf16")
    if not is_alone:
        return Choice(False, "bf16: auto computes in fp32, as several processes cannot try it each for itself")
    if gap is None:
        return Choice(False, "bf16: auto computes in fp32, as there is no first batch to try it on")
    found = gap()
    is_on = found <= LARGEST_GAP
    how = f"the loss of the first batch differs by {100 * found:.2g} % from fp32"
    return Choice(is_on, f"bf16: auto computes in {'bf16' if is_on else 'fp32'}: {how}")


def bf16_hint(device: torch.device, *, is_fast: bool, is_alone: bool) -> str:
    """Return what to tell a run that names no number format; "" where `bf16: auto` would change nothing.

    Such a run stays in float32, so that its numbers do not depend on the processor.
    """
    if device.type != "cpu" or not is_fast or not is_alone:
        return ""
    return ("the run computes in float32 on a processor that multiplies bfloat16 itself: bf16: auto, often faster, "
            "takes it if the loss of the first batch stays within 1 %")


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_fast_bf16()


def loss_gap(lm: PackedLM, examples: Sequence[Example]) -> float:
    """Return |L_bf16 - L_fp32| / L_fp32 of all tokens of the examples, on the CPU; NaN counts as no agreement."""
    everything = [replace(one, trained=np.ones(len(one.input_ids), np.bool_), weights=None, tracks=None)
                  for one in examples]
    stream = StreamTensors.of(everything)
    with evaluating(lm), torch.no_grad():
        exact = lm(stream).item()
        with torch.autocast("cpu", torch.bfloat16):
            rough = lm(stream).item()
    return float(abs(rough - exact) / max(abs(exact), 1e-12))


def _name(device: torch.device) -> str:
    return "processor" if device.type == "cpu" else "GPU"
