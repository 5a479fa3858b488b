"""Each engine as a pair of PyTorch operators, and the autograd Functions around them."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_fused import autocast, gradients, reference, transforms, triton
from lstm_fused.backends import ENGINES, Engine
from lstm_fused.gradients import PerInput
from lstm_fused.products import product
from lstm_fused.transforms import Axes, Optionals, Tensors

FORWARD = (
    "(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor? peephole, Tensor? weight_hr, "
    "Tensor h0, Tensor c0, Tensor? lengths, bool reverse, bool save) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)"
)
BACKWARD = (
    "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor c, Tensor gates, Tensor c0, Tensor weight_hh, "
    "Tensor? peephole, Tensor? weight_hr, Tensor? lengths, bool reverse) "
    "-> (Tensor dxw, Tensor dh0, Tensor dc0, Tensor dbias, Tensor dpeephole)"
)


def forward_fake(
    engine: Engine,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    save: bool,
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
) -> reference.Backward:
    """Shapes and dtypes of an engine's backward pass."""
    B, H = c0.shape
    return reference.Backward(
        gates.new_empty(gates.shape),
        gates.new_empty(B, weight_hh.shape[1]),
        gates.new_empty(B, H),
        gates.new_empty(4 * H),
        gates.new_empty(3 * H),
    )


LIBRARY = torch.library.Library("lstm_fused", "FRAGMENT")
for _engine in ENGINES:
    LIBRARY.define(f"{_engine.name}_forward{FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.define(f"{_engine.name}_backward{BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(
        f"lstm_fused::{_engine.name}_forward", partial(forward_fake, _engine), lib=LIBRARY
    )
    torch.library.register_fake(f"lstm_fused::{_engine.name}_backward", backward_fake, lib=LIBRARY)
LIBRARY.impl("reference_forward", reference.lstm_forward, "CompositeExplicitAutograd")
LIBRARY.impl("reference_backward", reference.lstm_backward, "CompositeExplicitAutograd")
LIBRARY.impl("triton_forward", triton.forward, triton.DEVICE.upper())
LIBRARY.impl("triton_backward", triton.backward, triton.DEVICE.upper())

forward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    engine.name: getattr(torch.ops.lstm_fused, f"{engine.name}_forward").default for engine in ENGINES
}
backward_op: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    engine.name: getattr(torch.ops.lstm_fused, f"{engine.name}_backward").default for engine in ENGINES
}


class LSTMFunction(torch.autograd.Function):
    """One layer in one direction; its arguments are the engine's name and the operator's, but for save."""

    @staticmethod
    def forward(engine: str, *arguments: Any) -> Tensors:
        return forward_op[engine](*arguments, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.engine, *tensors, ctx.reverse = inputs
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        ctx.save_for_backward(*tensors, y, c, gates)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        needs = PerInput(*ctx.needs_input_grad[1:9])
        tensors = ctx.saved_tensors
        with autocast.off(tensors[0].device):
            grads = LSTMBackwardFunction.apply(ctx.engine, needs, ctx.reverse, (), dy, dh_n, dc_n, *tensors)
        return None, *grads, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Optionals:
        *inputs, lengths = ctx.saved_tensors
        maths = transforms.layer_maths(inputs, lengths, ctx.reverse)
        return *transforms.push(maths, inputs, tangents[:8]), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], engine: str, *arguments: Any) -> tuple[Optionals, Axes]:
        axes, dims = (*transforms.INPUTS, *transforms.LENGTHS), dims[1:-1]
        *tensors, reverse = arguments
        if transforms.weights_vmapped(dims, axes):
            return transforms.over_slices(
                LSTMFunction.apply, info.batch_size, (None, *dims, None), (engine, *arguments)
            )
        folded = transforms.fold(info.batch_size, dims, axes, tensors)
        outputs = LSTMFunction.apply(engine, *folded, reverse)
        return transforms.unfold(info.batch_size, transforms.OUTPUTS, outputs), transforms.OUTPUTS


class LSTMBackwardFunction(torch.autograd.Function):
    """The backward pass as a function of its own, so that it can be differentiated once more.

    With ``groups``, the gradients of the weights are formed for each group of the batch by itself.
    """

    @staticmethod
    def forward(
        engine: str,
        needs: PerInput[bool],
        reverse: bool,
        groups: tuple[int, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        x: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        peephole: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        lengths: Tensor | None,
        y: Tensor,
        c: Tensor,
        gates: Tensor,
    ) -> PerInput[Tensor | None]:
        dxw, dh0, dc0, *sums = backward_op[engine](
            dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, weight_hr, lengths, reverse
        )
        known = None if groups else sums  # the engine's sums are over the whole batch
        form = partial(LSTMBackwardFunction.form, needs, reverse, weight_ih, weight_hh, peephole, known)
        tensors = (dxw, dh0, dc0, dy, dh_n, x, h0, c0, lengths, y, c, gates)
        axes = (*transforms.STATES, 1, 0, 1, 0, 0, *transforms.LENGTHS, *transforms.SAVED)
        return transforms.in_groups(form, needs, groups, axes, tensors)

    @staticmethod
    def form(
        needs: PerInput[bool],
        reverse: bool,
        weight_ih: Tensor,
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
        y: Tensor,
        c: Tensor,
        gates: Tensor,
    ) -> PerInput[Tensor | None]:
        """Every gradient that is needed, after the recurrence; ``sums`` are those of bias and peephole."""
        if sums is None:
            wide = c.to(reference.accumulation_dtype(c.dtype))
            c_prev = reference.previous(wide, c0.to(wide.dtype), lengths, reverse)
            sums = reference.vector_gradients(dxw, wide, c_prev, peephole)
        d_bias, d_peephole = sums
        dx = d_weight_ih = d_weight_hh = d_weight_hr = None
        if needs.x:
            dx = product(dxw, weight_ih)
        if needs.weight_ih:
            d_weight_ih = gradients.weight_ih_gradient(dxw, x, lengths)
        if needs.weight_hh:
            d_weight_hh = gradients.weight_hh_gradient(dxw, y, h0, lengths, reverse)
        if needs.weight_hr:
            d_weight_hr = gradients.weight_hr_gradient(dxw, dy, dh_n, c, gates, weight_hh, lengths, reverse)
        return PerInput(
            dx,
            d_weight_ih,
            d_weight_hh,
            d_bias if needs.bias else None,
            d_peephole if needs.peephole else None,
            d_weight_hr,
            dh0 if needs.h0 else None,
            dc0 if needs.c0 else None,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: PerInput[Tensor | None]) -> None:
        _, ctx.needs, ctx.reverse, ctx.groups, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:12])  # the saved y, c, gates follow from the rest
        ctx.save_for_forward(*tensors[:12])

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's own gradient: no engine has a second derivative by hand."""
        *tensors, lengths = ctx.saved_tensors
        maths = transforms.gradient_maths(ctx.needs, ctx.reverse, ctx.groups, tensors, lengths)
        needed = tuple(d for d, need in zip(dgrads, ctx.needs, strict=True) if need)
        with autocast.off(tensors[3].device):
            return (None,) * 4 + transforms.pull(maths, tensors, needed) + (None,) * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> PerInput[Tensor | None]:
        *tensors, lengths = ctx.saved_tensors
        maths = transforms.gradient_maths(ctx.needs, ctx.reverse, ctx.groups, tensors, lengths)
        pushed = iter(transforms.push(maths, tensors, tangents[4:15]))
        return PerInput(*(next(pushed) if need else None for need in ctx.needs))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Optionals, Axes]:
        axes = (*transforms.STATES, *transforms.INPUTS, *transforms.LENGTHS, *transforms.SAVED)
        engine, needs, reverse, groups, *tensors = arguments
        if transforms.weights_vmapped(dims[4:], axes):
            dims = (None,) * 4 + dims[4:]
            return transforms.over_slices(LSTMBackwardFunction.apply, info.batch_size, dims, arguments)
        folded = transforms.fold(info.batch_size, dims[4:], axes, tensors)
        groups = (info.batch_size, *groups)
        grads = LSTMBackwardFunction.apply(engine, needs, reverse, groups, *folded)
        where = zip(grads, transforms.INPUTS, strict=True)
        out_dims = tuple(None if grad is None else axis or 0 for grad, axis in where)
        return transforms.unfold(info.batch_size, transforms.INPUTS, grads), out_dims


class TracedLSTMFunction(LSTMFunction):
    """The same for the compiler, which takes no Function with a jvp of its own."""

    jvp = torch.autograd.Function.jvp  # type: ignore[assignment]


# PyTorch reads a Function's signature at every call, and takes far longer to find it out than to look it up.
for _function in (LSTMFunction, LSTMBackwardFunction):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]
