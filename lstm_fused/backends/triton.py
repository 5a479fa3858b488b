"""The GPU engine's Triton kernels, imported when first called; where they cannot run, the reason."""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lstm_fused.contract import Gradients, Inputs, OutputGradients, Outputs, Saved

INSTALLED = find_spec("triton") is not None  # looked for once: torch.compile cannot trace it

# Triton's own switch: kernels run in its interpreter, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"  # PyTorch calls AMD's cards cuda too


def unavailable() -> str | None:
    """Why the Triton engine cannot be used, or None where it can."""
    if not INSTALLED:
        return "Triton is not installed"
    if INTERPRETED:
        return None
    # What is cached cannot be traced, what is traced need not be quick.
    return why_no_card() if torch.compiler.is_compiling() else why_no_card_once()


def why_no_card() -> str | None:
    """Why there is no card here that the kernels could run on, or None."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


why_no_card_once = cache(why_no_card)


def serves(tensor: Tensor) -> bool:
    """Whether the kernels may be asked to run where this tensor is."""
    return INSTALLED and tensor.device.type == DEVICE


def forward(inputs: Inputs, unasked: bool = False) -> Outputs:
    """The forward pass; where it was ``unasked`` for by name, the reference may run in its place."""
    from lstm_fused.kernels import guard

    outputs: Outputs = guard.forward(inputs, unasked)
    return outputs


def backward(saved: Saved, douts: OutputGradients, unasked: bool = False) -> Gradients:
    """The backward pass; see `forward`."""
    from lstm_fused.kernels import guard

    gradients: Gradients = guard.backward(saved, douts, unasked)
    return gradients
