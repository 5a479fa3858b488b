"""The operators' autograd and vmap kernels, for programs that hold the operators themselves.

Eager calls go to `LSTMFunction` directly. What is compiled, exported or traced holds operators; when such a
program is transformed or trained, PyTorch's dispatcher comes here.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from lstm_fused import tracing, transforms
from lstm_fused.backends import OPERATORS
from lstm_fused.function import LSTMFunction
from lstm_fused.ops import LIBRARY, backward_op, below_autograd, forward_op
from lstm_fused.transforms import Axes, Optionals, Tensors


def requires_grad(arguments: Iterable[Any]) -> bool:
    """Whether autograd is to record what is done with these."""
    if torch.is_grad_enabled():
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def whole(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """All operands of the forward operator; the dispatcher leaves out what is as by default."""
    return operands + (None,) * (16 - len(operands))


def as_in_function(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tensors among them in the order of `LSTMFunction`: inputs, then lengths and masks."""
    return *operands[:8], operands[11], operands[8], *operands[12:15]


def differentiable_forward(engine: str, *arguments: Any) -> Tensors:
    """The forward operator where derivatives may be asked for: its autograd kernel."""
    arguments = whole(arguments)
    tensors, reverse, save, cell_clip = as_in_function(arguments), *arguments[9:11], arguments[15]
    if not (tracing.transformed() or requires_grad(tensors[:9])):
        with below_autograd():
            return forward_op[engine](*arguments)
    if tracing.forward_levels():  # a jvp that transforms cannot be asked for in the middle of one
        return LSTMFunction.composed(engine, *tensors, reverse, cell_clip)
    with enable_single_level_autograd_function():
        y, h_n, c_n, c, gates = LSTMFunction.apply_once(engine, *tensors, reverse, cell_clip)
    return (y, h_n, c_n, c, gates) if save else (y, h_n, c_n, c.new_empty(0), gates.new_empty(0))


def once_differentiable_backward(engine: str, *arguments: Any) -> Tensors:
    """The backward operator by itself, which has no derivative: its autograd kernel."""
    if tracing.transformed():
        raise RuntimeError(f"lstm_fused::{engine}_backward cannot be transformed; lstm_fused.lstm can")
    with below_autograd():
        outputs = backward_op[engine](*arguments)
    if not requires_grad(arguments):
        return outputs
    refuse = torch._C._functions.DelayedError(
        f"lstm_fused::{engine}_backward has no derivative of its own; that of lstm_fused.lstm has",
        len(outputs),
    )
    return tuple(refuse(*(output.requires_grad_() for output in outputs)))


def vmapped_forward(engine: str, info: Any, dims: Axes, *arguments: Any) -> tuple[Optionals, Axes]:
    """The forward operator over a batch of calls: its vmap kernel."""
    dims, arguments = whole(dims), whole(arguments)
    reverse, save, cell_clip = *arguments[9:11], arguments[15]

    def call(*tensors: Any) -> Tensors:
        *inputs, gain_hh, lengths, h_mask, zoneout_h, zoneout_c = tensors
        variant = gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip
        return forward_op[engine](*inputs, lengths, reverse, save, *variant)

    out_axes = transforms.OUTPUTS if save else transforms.STATES
    return transforms.vmapped(
        call, info.batch_size, as_in_function(dims), as_in_function(arguments), out_axes
    )


for _name in OPERATORS:
    LIBRARY.impl(f"{_name}_forward", partial(differentiable_forward, _name), "Autograd")
    LIBRARY.impl(f"{_name}_backward", partial(once_differentiable_backward, _name), "Autograd")
    torch.library.register_vmap(f"lstm_fused::{_name}_forward", partial(vmapped_forward, _name), lib=LIBRARY)
