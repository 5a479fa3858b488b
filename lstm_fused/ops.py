"""Each engine as a pair of PyTorch operators, and the autograd Functions around them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from lstm_fused import autocast, gradients, reference, transforms, triton
from lstm_fused.backends import ENGINES, Engine
from lstm_fused.gradients import PerInput
from lstm_fused.reference import Variant
from lstm_fused.transforms import Axes, Optionals, Tensors

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


LIBRARY = torch.library.Library("lstm_fused", "FRAGMENT")
for _engine in ENGINES:
    LIBRARY.define(f"{_engine.name}_forward{FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.define(f"{_engine.name}_backward{BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(
        f"lstm_fused::{_engine.name}_forward", partial(forward_fake, _engine), lib=LIBRARY
    )
    torch.library.register_fake(f"lstm_fused::{_engine.name}_backward", backward_fake, lib=LIBRARY)
LIBRARY.impl("reference_forward", reference_forward, "CompositeExplicitAutograd")
LIBRARY.impl("reference_backward", reference_backward, "CompositeExplicitAutograd")
LIBRARY.impl("triton_forward", triton.forward, triton.DEVICE.upper())
LIBRARY.impl("triton_backward", triton.backward, triton.DEVICE.upper())

forward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    engine.name: getattr(torch.ops.lstm_fused, f"{engine.name}_forward").default for engine in ENGINES
}
backward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    engine.name: getattr(torch.ops.lstm_fused, f"{engine.name}_backward").default for engine in ENGINES
}


class Function(torch.autograd.Function):
    """A Function called without PyTorch's search for default arguments, a third of a short layer's time."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]


class LSTMFunction(Function):
    """One layer in one direction: the inputs it differentiates, lengths and masks, reverse, cell_clip."""

    @staticmethod
    def forward(engine: str, *arguments: Any) -> Tensors:
        *inputs, gain_hh, lengths, h_mask, zoneout_h, zoneout_c, reverse, cell_clip = arguments
        variant = (gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip)
        return forward_op[engine](*inputs, lengths, reverse, True, *variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.engine, *tensors, reverse, cell_clip = inputs
        ctx.how = reverse, cell_clip
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        ctx.save_for_backward(*tensors, y, c, gates)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        needs = PerInput(*ctx.needs_input_grad[1:10])
        tensors = ctx.saved_tensors
        with autocast.off(tensors[0].device):
            grads = LSTMBackwardFunction.apply(ctx.engine, needs, *ctx.how, (), dy, dh_n, dc_n, *tensors)
        return None, *grads, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Optionals:
        inputs, fixed = ctx.saved_tensors[:9], ctx.saved_tensors[9:]
        maths = transforms.layer_maths(inputs, fixed, *ctx.how)
        return *transforms.push(maths, inputs, tangents[:9]), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], engine: str, *arguments: Any) -> tuple[Optionals, Axes]:
        axes, dims = (*transforms.INPUTS, *transforms.FIXED), dims[1:-2]
        *tensors, reverse, cell_clip = arguments
        if transforms.weights_vmapped(dims, axes):
            return transforms.over_slices(
                LSTMFunction.apply, info.batch_size, (None, *dims, None, None), (engine, *arguments)
            )
        folded = transforms.fold(info.batch_size, dims, axes, tensors)
        outputs = LSTMFunction.apply(engine, *folded, reverse, cell_clip)
        return transforms.unfold(info.batch_size, transforms.OUTPUTS, outputs), transforms.OUTPUTS


class LSTMBackwardFunction(Function):
    """The backward pass as a function of its own, so that it can be differentiated once more.

    With ``groups``, the gradients of the weights are formed for each group of the batch by itself.
    """

    @staticmethod
    def forward(
        engine: str,
        needs: PerInput[bool],
        reverse: bool,
        cell_clip: float | None,
        groups: tuple[int, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        x: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias: Tensor | None,
        peephole: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        gain_hh: Tensor | None,
        lengths: Tensor | None,
        h_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        y: Tensor,
        c: Tensor,
        gates: Tensor,
    ) -> PerInput[Tensor | None]:
        variant = Variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip)
        # All that is left to do with h_{t-1} is to multiply it by W_hh, or its gradient.
        if h_mask is not None:
            y, h0 = y * h_mask, h0 * h_mask
        hw = None if gain_hh is None else gradients.recurrent_products(y, h0, weight_hh, lengths, reverse)
        dxw, dh0, dc0, dbias, dpeephole, dhw = backward_op[engine](
            dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, weight_hr, lengths, reverse, *variant, hw
        )
        known = None if groups else (dbias, dpeephole)  # the engine's sums are over the whole batch
        weights = weight_ih, weight_hh, peephole
        form = partial(LSTMBackwardFunction.form, needs, reverse, cell_clip, *weights, known)
        tensors = (dxw, dh0, dc0, dy, dh_n, x, h0, c0, lengths, h_mask, zoneout_h, zoneout_c, y, c, gates)
        axes = (*transforms.STATES, 1, 0, 1, 0, 0, *transforms.FIXED, *transforms.SAVED)
        normed = (None, None) if hw is None else (dhw, hw)
        return transforms.in_groups(form, needs, groups, (*axes, 1, 1), (*tensors, *normed))

    @staticmethod
    def form(
        needs: PerInput[bool],
        reverse: bool,
        cell_clip: float | None,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        peephole: Tensor | None,
        sums: Sequence[Tensor] | None,
        dxw: Tensor,
        dh0: Tensor,
        dc0: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        lengths: Tensor | None,
        h_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        y: Tensor,
        c: Tensor,
        gates: Tensor,
        dhw: Tensor | None,
        hw: Tensor | None,
    ) -> PerInput[Tensor | None]:
        """Every gradient that is needed, after the recurrence; ``sums`` are those of bias and peephole."""
        if sums is None or zoneout_c is not None:
            wide = c.to(reference.accumulation_dtype(c.dtype))
            c_prev = reference.previous(wide, c0.to(wide.dtype), lengths, reverse)
            c = reference.cell_before_zoneout(wide, c_prev, gates, zoneout_c, cell_clip)
            if sums is None:
                sums = reference.vector_gradients(dxw, c, c_prev, peephole)
        d_bias, d_peephole = sums
        dhw = dxw if dhw is None else dhw
        dx, d_weight_ih, d_weight_hh = gradients.product_gradients(
            needs, dxw, dhw, x, weight_ih, y, h0, lengths, reverse
        )
        d_weight_hr = d_gain_hh = None
        if needs.weight_hr:
            d_weight_hr = gradients.weight_hr_gradient(
                dhw, dy, dh_n, c, gates, weight_hh, lengths, h_mask, zoneout_h, reverse
            )
        if needs.gain_hh and hw is not None:
            d_gain_hh = gradients.gain_hh_gradient(dxw, hw)
        return PerInput(
            dx,
            d_weight_ih,
            d_weight_hh,
            d_bias if needs.bias else None,
            d_peephole if needs.peephole else None,
            d_weight_hr,
            dh0 if needs.h0 else None,
            dc0 if needs.c0 else None,
            d_gain_hh,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: PerInput[Tensor | None]) -> None:
        _, ctx.needs, reverse, cell_clip, ctx.groups, *tensors = inputs
        ctx.how = reverse, cell_clip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:16])  # the saved y, c, gates follow from the rest
        ctx.save_for_forward(*tensors[:16])

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's own gradient: no engine has a second derivative by hand."""
        tensors, fixed = ctx.saved_tensors[:12], ctx.saved_tensors[12:]
        maths = transforms.gradient_maths(ctx.needs, ctx.groups, tensors, fixed, *ctx.how)
        needed = tuple(d for d, need in zip(dgrads, ctx.needs, strict=True) if need)
        with autocast.off(tensors[3].device):
            return (None,) * 5 + transforms.pull(maths, tensors, needed) + (None,) * 7

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> PerInput[Tensor | None]:
        tensors, fixed = ctx.saved_tensors[:12], ctx.saved_tensors[12:]
        maths = transforms.gradient_maths(ctx.needs, ctx.groups, tensors, fixed, *ctx.how)
        pushed = iter(transforms.push(maths, tensors, tangents[5:17]))
        return PerInput(*(next(pushed) if need else None for need in ctx.needs))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Optionals, Axes]:
        axes = (*transforms.STATES, *transforms.INPUTS, *transforms.FIXED, *transforms.SAVED)
        engine, needs, reverse, cell_clip, groups, *tensors = arguments
        if transforms.weights_vmapped(dims[5:], axes):
            dims = (None,) * 5 + dims[5:]
            return transforms.over_slices(LSTMBackwardFunction.apply, info.batch_size, dims, arguments)
        folded = transforms.fold(info.batch_size, dims[5:], axes, tensors)
        groups = (info.batch_size, *groups)
        grads = LSTMBackwardFunction.apply(engine, needs, reverse, cell_clip, groups, *folded)
        where = zip(grads, transforms.INPUTS, strict=True)
        out_dims = tuple(None if grad is None else axis or 0 for grad, axis in where)
        return transforms.unfold(info.batch_size, transforms.INPUTS, grads), out_dims


class TracedLSTMFunction(LSTMFunction):
    """The same for the compiler, which takes no Function with a jvp of its own."""

    jvp = torch.autograd.Function.jvp  # type: ignore[assignment]
