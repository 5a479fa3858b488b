"""The GPU engine's Triton kernels, imported when first called; where they cannot run, the reason."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lstm_fused.reference import Backward, Forward, Variant

# Triton's own switch: kernels run in its interpreter, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"  # PyTorch calls AMD's cards cuda too


def unavailable() -> str | None:
    """Why the Triton engine cannot be used, or None where it can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


def forward(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
    *variant: Any,
) -> Forward:
    """The forward pass by the contract of `lstm_fused.reference`."""
    from lstm_fused.kernels import launch

    of = Variant.of(*variant)
    result: Forward = launch.forward(
        x, weight_ih, weight_hh, bias, peephole, weight_hr, h0, c0, lengths, reverse, save, of
    )
    return result


def backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    *variant: Any,
) -> Backward:
    """The backward pass by the contract of `lstm_fused.reference`."""
    from lstm_fused.kernels import launch

    result: Backward = launch.backward(
        dy,
        dh_n,
        dc_n,
        c,
        gates,
        c0,
        weight_hh,
        peephole,
        weight_hr,
        lengths,
        reverse,
        Variant.of(*variant[:5]),
        *variant[5:],
    )
    return result
