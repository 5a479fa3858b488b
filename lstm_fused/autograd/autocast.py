"""What autocast makes of the layers: tensors are cast once, on the way in; an engine never meets it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device."""
    kind = device.type
    if kind in ("cpu", "cuda"):
        return torch.is_autocast_enabled(kind)
    # Dynamo cannot trace that question in torch 2.10 and 2.11; but what is compiled runs where autocast is.
    compiling = torch.compiler.is_compiling() and kind != "meta"
    available = compiling or torch.amp.is_autocast_available(kind)
    return available and torch.is_autocast_enabled(kind)


def computed_in(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor is computed in: under autocast its dtype, but float64 is left alone."""
    if tensor.dtype == torch.float64 or not tensor.is_floating_point() or not enabled(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def off(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside: what an engine sums in float32 stays float32."""
    return torch.autocast(device.type, enabled=False) if enabled(device) else nullcontext()
