"""Detects compilation, tracing, functorch transforms and fake tensors."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._ops import _get_dispatch_mode_pre_dispatch
from torch.autograd import forward_ad
from torch.jit._trace import TracerWarning
from torch.nn import Parameter

# Tracing warns wherever Python compares sizes, as the checks of arguments do; torch silences its own code so.
warnings.filterwarnings("ignore", category=TracerWarning, module="lstm_fused")

MAKE_FX = _TorchDispatchModeKey.PROXY


def under_transform() -> bool:
    """True under a functorch transform or forward mode, where inputs need not require gradients."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def forward_levels() -> int:
    """Number of active forward-mode levels of `torch.func`."""
    return sum(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def recorded() -> bool:
    """True while this call is recorded into a program: compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


class State(threading.local):
    """State of this thread."""

    vmap_depth = 0  # nested vmap rules in progress


STATE = State()


@contextmanager
def vmapping() -> Iterator[None]:
    """Mark calls made by a vmap rule: inside it, PyTorch no longer shows that vmap is active."""
    STATE.vmap_depth += 1
    try:
        yield
    finally:
        STATE.vmap_depth -= 1


def watched() -> bool:
    """True if this call is recorded into a program, or runs under a transform or a dispatch mode."""
    if recorded() or torch._C._are_functorch_transforms_active():  # first: Dynamo cannot trace the rest
        return True
    return STATE.vmap_depth > 0 or torch._C._len_torch_dispatch_stack() > 0


def has_values(tensor: Tensor) -> bool:
    """True if Python may read the tensor's values and branch on them.

    False on the meta device, for fake tensors, in a transform and while a program is recorded.
    """
    if recorded() or torch._C._are_functorch_transforms_active():
        return False
    if type(tensor) not in (Tensor, Parameter) or tensor.is_meta:
        return False
    return _get_dispatch_mode(MAKE_FX) is None and _get_dispatch_mode_pre_dispatch(MAKE_FX) is None


def has_values_on_cpu(tensor: Tensor) -> bool:
    """`has_values`, and reading them waits for no device."""
    return tensor.device.type == "cpu" and has_values(tensor)
