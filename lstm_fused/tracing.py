"""What PyTorch does with a call besides computing it: compile, trace, transform, or fake it."""

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
