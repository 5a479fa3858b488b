"""Autocast: a layer casts its tensors once on entry, and the engine runs with autocast off."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

NO_CONTEXT = nullcontext()


def enabled(device: torch.device) -> bool:
    """True if autocast is on for this device."""
    if not torch._C._is_any_autocast_enabled():
        return False
    kind = device.type
    if kind in ("cpu", "cuda"):
        return torch.is_autocast_enabled(kind)
    # Dynamo in torch 2.10 and 2.11 cannot trace is_autocast_available; devices that compile have autocast.
    compiling = torch.compiler.is_compiling() and kind != "meta"
    available = compiling or torch.amp.is_autocast_available(kind)
    return available and torch.is_autocast_enabled(kind)


def computed_in(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor is computed in: the autocast dtype under autocast, except for float64."""
    if tensor.dtype == torch.float64 or not tensor.is_floating_point() or not enabled(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def off(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off, so that an engine's float32 sums stay float32."""
    return torch.autocast(device.type, enabled=False) if enabled(device) else NO_CONTEXT
