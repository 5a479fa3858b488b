"""The operators' autograd and vmap kernels, for programs that contain the operators themselves.

Eager calls use `PlainFunction` or `LSTMFunction` directly. Compiled, exported and traced programs contain
operators; when such a program is transformed or trained, PyTorch's dispatcher calls these kernels.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from lstm_fused.autograd import flops, tracing, transforms
from lstm_fused.autograd.function import LSTMFunction
from lstm_fused.autograd.operators import (
    LIBRARY,
    backward_op,
    below_autograd,
    forward_op,
    gradients_op,
    products_op,
)
from lstm_fused.autograd.transforms import Axes, Optionals, Tensors, put
from lstm_fused.backends.table import OPERATORS
from lstm_fused.contract import DIFFERENTIABLE, SAVE, Outputs, batch_axes
from lstm_fused.on_import import after_import


def requires_grad(arguments: Iterable[Any]) -> bool:
    """True if autograd records operations on these arguments."""
    if torch.is_grad_enabled():
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def differentiated(operands: Sequence[Any]) -> bool:
    """True if autograd or a transform differentiates a layer with these fields of `Inputs`."""
    if tracing.under_transform():
        return True
    if torch.is_grad_enabled():
        for n in DIFFERENTIABLE:  # a loop: this runs in every call
            operand = operands[n]
            if operand is not None and operand.requires_grad:
                return True
    return False


def differentiable_forward(engine: str, *operands: Any) -> Tensors:
    """The forward operator's autograd kernel."""
    # The dispatcher omits trailing arguments that have their default value.
    operands, save = transforms.complete(operands), operands[SAVE]
    if not differentiated(operands):
        with below_autograd():
            return forward_op[engine](*operands)
    operands = put((SAVE,), (True,), operands)
    if tracing.forward_levels():  # LSTMFunction.jvp uses transforms, which cannot start inside a level
        return LSTMFunction.composed(engine, *operands)
    with enable_single_level_autograd_function():
        y, h_n, c_n, c, gates = LSTMFunction.apply_once(engine, *operands)
    return (y, h_n, c_n, c, gates) if save else (y, h_n, c_n, c.new_empty(0), gates.new_empty(0))


def once_differentiable(operator: Callable[..., Tensors], *arguments: Any) -> Tensors:
    """The autograd kernel of operators that compute gradients, which have no derivative."""
    name = operator.name()  # type: ignore[attr-defined]
    if tracing.under_transform():
        raise RuntimeError(f"{name} cannot be transformed; lstm_fused.lstm can")
    with below_autograd():
        outputs = operator(*arguments)
    if not requires_grad(arguments):
        return outputs
    refuse = torch._C._functions.DelayedError(
        f"{name} has no derivative; differentiate lstm_fused.lstm twice instead", len(outputs)
    )
    return tuple(refuse(*(output.requires_grad_() for output in outputs)))


def vmapped_forward(engine: str, info: Any, dims: Axes, *operands: Any) -> tuple[Optionals, Axes]:
    """The forward operator's vmap kernel."""
    dims, operands = transforms.complete(dims), transforms.complete(operands)
    return transforms.vmap_rule(forward_op[engine], info.batch_size, dims, operands, batch_axes(Outputs))


for _name in OPERATORS:
    LIBRARY.impl(f"{_name}_forward", partial(differentiable_forward, _name), "Autograd")
    for _operators in (backward_op, products_op, gradients_op):
        if _name in _operators:
            _kernel = partial(once_differentiable, _operators[_name])
            LIBRARY.impl(_operators[_name].name(), _kernel, "Autograd")  # type: ignore[attr-defined]
    torch.library.register_vmap(f"lstm_fused::{_name}_forward", partial(vmapped_forward, _name), lib=LIBRARY)
after_import(flops.COUNTER, flops.register)
