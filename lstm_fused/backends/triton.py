"""The Triton engine: imports its kernels at the first call, and tells why they cannot run."""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lstm_fused.contract import Gradients, Inputs, OutputGradients, Outputs, Saved

INSTALLED = find_spec("triton") is not None  # at import, because torch.compile cannot trace find_spec

# Triton's own switch: run kernels in its interpreter, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"  # PyTorch calls AMD's cards cuda too


def unavailable() -> str | None:
    """The reason the Triton engine cannot be used, or None."""
    if not INSTALLED:
        return "Triton is not installed"
    if INTERPRETED:
        return None
    # torch.compile cannot trace a cached function; while tracing, speed does not matter.
    return why_no_card() if torch.compiler.is_compiling() else why_no_card_once()


def why_no_card() -> str | None:
    """The reason no card here can run the kernels, or None."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


why_no_card_once = cache(why_no_card)


def serves(tensor: Tensor) -> bool:
    """True if the kernels run on this tensor's device type and Triton is installed."""
    return INSTALLED and tensor.device.type == DEVICE


def forward(inputs: Inputs, by_default: bool = False) -> Outputs:
    """The forward pass; if the engine was not named (``by_default``), the reference may run instead."""
    from lstm_fused.kernels import guard

    outputs: Outputs = guard.forward(inputs, by_default)
    return outputs


def backward(saved: Saved, douts: OutputGradients, by_default: bool = False) -> Gradients:
    """The backward pass; see `forward`."""
    from lstm_fused.kernels import guard

    gradients: Gradients = guard.backward(saved, douts, by_default)
    return gradients
