"""What PyTorch does with a call besides computing it: compile, trace, transform, or fake it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform or forward mode may watch, for which no tensor need require gradients."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def forward_levels() -> int:
    """How many levels of `torch.func`'s forward mode are active."""
    return sum(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def recorded() -> bool:
    """Whether a program is made of what is done: compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


class Here(threading.local):
    """What this thread is doing."""

    vmapped = 0  # calls of vmap's, one inside the other


HERE = Here()


@contextmanager
def vmapping() -> Iterator[None]:
    """Inside of this, calls are parts of a vmapped one, which nothing else tells once vmap is done."""
    HERE.vmapped += 1
    try:
        yield
    finally:
        HERE.vmapped -= 1


def watched() -> bool:
    """Whether this call is not only computed: a program is made of it, a transform or a mode is at work."""
    modes = torch._C._len_torch_dispatch_stack()
    return recorded() or torch._C._are_functorch_transforms_active() or HERE.vmapped > 0 or modes > 0


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read here, and what they decide need not hold for another call.

    They cannot on the meta device, of fake tensors, in a transform, or while a program is made.
    """
    if recorded() or torch._C._are_functorch_transforms_active():
        return False
    proxy = torch._C._TorchDispatchModeKey.PROXY  # of make_fx
    modes = torch._C._get_dispatch_mode(proxy), torch._ops._get_dispatch_mode_pre_dispatch(proxy)
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta and modes == (None, None)


def has_values_on_cpu(tensor: Tensor) -> bool:
    """The same, and no device has to be waited for."""
    return tensor.device.type == "cpu" and has_values(tensor)
