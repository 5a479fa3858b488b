"""Each engine as a pair of PyTorch operators; `lstm_fused.function` has their derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_fused import reference, triton
from lstm_fused.backends import OPERATORS, Engine
from lstm_fused.reference import Variant

VARIANT = (
    "Tensor? gain_hh=None, Tensor? h_mask=None, Tensor? zoneout_h=None, Tensor? zoneout_c=None, "
    "float? cell_clip=None"
)
FORWARD = (
    "(Tensor x, Tensor? weight_ih, Tensor weight_hh, Tensor? bias, Tensor? peephole, Tensor? weight_hr, "
    f"Tensor h0, Tensor c0, Tensor? lengths, bool reverse, bool save, {VARIANT}) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)"
)
BACKWARD = (
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor c, Tensor gates, Tensor c0, Tensor weight_hh, "
    f"Tensor? peephole, Tensor? weight_hr, Tensor? lengths, bool reverse, {VARIANT}, Tensor? hw=None) "
    "-> (Tensor dxw, Tensor dh0, Tensor dc0, Tensor dbias, Tensor dpeephole, Tensor dhw)"
)
SAVE = 10  # where the forward operators have that argument


def forward_fake(
    engine: Engine,
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
    *variant: Any,
) -> reference.Forward:
    """Shapes and dtypes of an engine's forward pass."""
    (T, B, _), P, H = x.shape, h0.shape[1], c0.shape[1]
    return reference.Forward(
        x.new_empty(T, B, P),
        x.new_empty(B, P),
        x.new_empty(B, H),
        x.new_empty((T, B, H) if save else (0,), dtype=engine.dtype_of_c(x.dtype)),
        x.new_empty((T, B, 4 * H) if save else (0,)),
    )


def backward_fake(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    gain_hh: Tensor | None = None,
    *variant: Any,
) -> reference.Backward:
    """Shapes and dtypes of an engine's backward pass."""
    B, H = c0.shape
    return reference.Backward(
        gates.new_empty(gates.shape),
        gates.new_empty(B, weight_hh.shape[1]),
        gates.new_empty(B, H),
        gates.new_empty(4 * H),
        gates.new_empty(3 * H),
        gates.new_empty((0,) if gain_hh is None else gates.shape),
    )


def reference_forward(*arguments: Any) -> reference.Forward:
    """The reference, called as an operator is."""
    contract: Any = reference.lstm_forward
    result: reference.Forward = contract(*arguments[:11], Variant(*arguments[11:]))
    return result


def reference_backward(*arguments: Any) -> reference.Backward:
    """The reference, called as an operator is."""
    contract: Any = reference.lstm_backward
    result: reference.Backward = contract(*arguments[:11], Variant(*arguments[11:16]), *arguments[16:])
    return result


def triton_or_reference_forward(*arguments: Any) -> reference.Forward:
    """Triton where its kernels are right on this card, else the reference, as of a program made elsewhere."""
    if triton.serves(arguments[0]):
        return triton.forward(*arguments, unasked=True)
    return reference_forward(*arguments)


def triton_or_reference_backward(*arguments: Any) -> reference.Backward:
    """The same, whichever of them the forward pass was."""
    if triton.serves(arguments[3]):
        return triton.backward(*arguments, unasked=True)
    return reference_backward(*arguments)


LIBRARY = torch.library.Library("lstm_fused", "FRAGMENT")
for _name, _engine in OPERATORS.items():
    LIBRARY.define(f"{_name}_forward{FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.define(f"{_name}_backward{BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"lstm_fused::{_name}_forward", partial(forward_fake, _engine), lib=LIBRARY)
    torch.library.register_fake(f"lstm_fused::{_name}_backward", backward_fake, lib=LIBRARY)
LIBRARY.impl("reference_forward", reference_forward, "CompositeExplicitAutograd")
LIBRARY.impl("reference_backward", reference_backward, "CompositeExplicitAutograd")
LIBRARY.impl("triton_forward", triton.forward, triton.DEVICE.upper())
LIBRARY.impl("triton_backward", triton.backward, triton.DEVICE.upper())
LIBRARY.impl("triton_or_reference_forward", triton_or_reference_forward, "CompositeExplicitAutograd")
LIBRARY.impl("triton_or_reference_backward", triton_or_reference_backward, "CompositeExplicitAutograd")

forward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_forward").default for name in OPERATORS
}
backward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name: getattr(torch.ops.lstm_fused, f"{name}_backward").default for name in OPERATORS
}
# An operator called inside of this runs its engine: the kernels of `lstm_fused.function` are not asked.
below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
