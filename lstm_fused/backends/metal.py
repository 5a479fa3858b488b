"""The Metal engine for Apple GPUs: imports its kernels at the first call, and tells why they cannot run."""

import torch
from torch import Tensor

from lstm_fused.contract import Gradients, Inputs, OutputGradients, Outputs, Saved

DEVICE = "mps"
BUILT = torch.backends.mps.is_built()
DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # Apple GPUs have no float64


def unavailable() -> str | None:
    """The reason the Metal engine cannot be used, or None."""
    # torch.compile cannot trace the query; while it traces, there are tensors on the device.
    if BUILT and (torch.compiler.is_compiling() or torch.backends.mps.is_available()):
        return None
    return "PyTorch sees no Apple GPU (MPS)"


def serves(tensor: Tensor) -> bool:
    """True if the kernels run on this tensor's device type."""
    return tensor.device.type == DEVICE


def forward(inputs: Inputs, by_default: bool = False) -> Outputs:
    """The forward pass; if the engine was not named (``by_default``), the reference may run instead."""
    from lstm_fused.kernels import guard

    outputs: Outputs = guard.forward(inputs, by_default, "metal")
    return outputs


def backward(saved: Saved, douts: OutputGradients, by_default: bool = False) -> Gradients:
    """The backward pass; see `forward`."""
    from lstm_fused.kernels import guard

    gradients: Gradients = guard.backward(saved, douts, by_default, "metal")
    return gradients
