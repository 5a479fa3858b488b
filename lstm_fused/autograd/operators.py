"""Registers the PyTorch operators of each engine; `lstm_fused.autograd.function` has derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused.backends import metal, triton
from lstm_fused.backends.table import OPERATORS, Engine
from lstm_fused.contract import (
    BACKWARD_INPUTS,
    FACTORS,
    GRADIENTS_INPUTS,
    INPUTS,
    SCHEMAS,
    Factors,
    GivenFactors,
    Gradients,
    InputGradients,
    Inputs,
    OutputGradients,
    Outputs,
    Products,
    Saved,
    empty_outputs,
    unflatten,
)


def forward_fake(engine: Engine, *operands: Any) -> Outputs:
    """Empty results of an engine's forward pass."""
    x = operands[0]
    return empty_outputs(dict(zip(INPUTS, operands, strict=False)), Outputs, x, engine.dtype_of_c(x.dtype))


def backward_fake(engine: Engine, *operands: Any) -> Gradients:
    """Empty results of an engine's backward pass."""
    takes = dict(zip(BACKWARD_INPUTS, operands, strict=False))
    return empty_outputs(takes, Gradients, takes["gates"], engine.dtype_of_c(takes["gates"].dtype))


def products_fake(engine: Engine, *operands: Any) -> Products:
    """Empty results of an engine's products."""
    dxw = operands[0]
    return empty_outputs(dict(zip(FACTORS, operands, strict=False)), Products, dxw, dxw.dtype)


def gradients_fake(engine: Engine, *operands: Any) -> InputGradients:
    """Empty results of an engine's backward pass and products in one call."""
    takes = dict(zip(GRADIENTS_INPUTS, operands, strict=False))
    return empty_outputs(takes, InputGradients, takes["gates"], takes["gates"].dtype)


def forward_kernel(forward: Callable[[Inputs], Outputs], *operands: Any) -> Outputs:
    """Call an engine's forward pass with an operator's arguments."""
    return forward(*unflatten(operands, Inputs))


def backward_kernel(backward: Callable[[Saved, OutputGradients], Gradients], *operands: Any) -> Gradients:
    """Call an engine's backward pass with an operator's arguments."""
    douts, saved = unflatten(operands, OutputGradients, Saved)
    return backward(saved, douts)


def or_reference_forward(backend: Any, inputs: Inputs) -> Outputs:
    """The engine if its kernels can run here, else the reference: a program may come from another machine."""
    run = partial(backend.forward, by_default=True) if backend.serves(inputs.x) else reference.forward
    outputs: Outputs = run(inputs)
    return outputs


def or_reference_backward(backend: Any, saved: Saved, douts: OutputGradients) -> Gradients:
    """The backward pass of either; both save the same tensors for it."""
    run = partial(backend.backward, by_default=True) if backend.serves(saved.c) else reference.backward
    gradients: Gradients = run(saved, douts)
    return gradients


def or_reference(backend: Any) -> tuple[Callable[..., Outputs], Callable[..., Gradients]]:
    """The two passes of an engine chosen by default."""
    return partial(or_reference_forward, backend), partial(or_reference_backward, backend)


LIBRARY = torch.library.Library("lstm_fused", "FRAGMENT")
for _name, _engine in OPERATORS.items():
    for _pass, _fake in (
        ("forward", forward_fake),
        ("backward", backward_fake),
        ("products", products_fake),
        ("gradients", gradients_fake),
    )[: 4 if _engine.products else 2]:
        _operator = f"{_name}_{_pass}"
        if not hasattr(torch.ops.lstm_fused, _operator):  # the C++ engine defines its own, where it loads
            LIBRARY.define(_operator + SCHEMAS[_pass], tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"lstm_fused::{_operator}", partial(_fake, _engine), lib=LIBRARY)

ANYWHERE = "CompositeExplicitAutograd"
for _name, _forward, _backward, _key in (  # the C++ engine registers itself
    ("reference", reference.forward, reference.backward, ANYWHERE),
    ("triton", triton.forward, triton.backward, triton.DEVICE.upper()),
    ("triton_or_reference", *or_reference(triton), ANYWHERE),
    ("metal", metal.forward, metal.backward, metal.DEVICE.upper()),
    ("metal_or_reference", *or_reference(metal), ANYWHERE),
):
    LIBRARY.impl(f"{_name}_forward", partial(forward_kernel, _forward), _key)
    LIBRARY.impl(f"{_name}_backward", partial(backward_kernel, _backward), _key)

forward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_forward").default for name in OPERATORS
}
backward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_backward").default for name in OPERATORS
}
products_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_products").default
    for name, engine in OPERATORS.items()
    if engine.products
}
gradients_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_gradients").default for name in products_op
}
# Inside this guard an operator goes straight to its engine and skips the autograd kernels.
below_autograd = torch._C._AutoDispatchBelowADInplaceOrView


def products(engine: str | None, factors: Factors) -> Products:
    """The products after the recurrence, by the engine, or by the reference if it has none or is None."""
    if engine not in products_op:
        return reference.products(factors)
    with below_autograd():
        return Products(*products_op[engine](*factors))


def gradients(
    engine: str, given: GivenFactors, douts: OutputGradients, saved: tuple[Any, ...]
) -> InputGradients:
    """The backward pass and its products by an engine that has both in one; ``saved``: as `Saved`."""
    with below_autograd():
        return InputGradients(*gradients_op[engine](*given, *douts, *saved))
