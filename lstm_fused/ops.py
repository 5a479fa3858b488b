"""Each engine as a pair of PyTorch operators, and the autograd Functions around them."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lstm_fused import gradients, reference, triton
from lstm_fused.backends import ENGINES, Engine
from lstm_fused.gradients import PerInput
from lstm_fused.products import product

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
    def forward(engine: str, *arguments: Any) -> tuple[Tensor, ...]:
        return forward_op[engine](*arguments, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.engine, *tensors, ctx.reverse = inputs
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        ctx.save_for_backward(*tensors, y, c, gates)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        needs = PerInput(*ctx.needs_input_grad[1:9])
        grads = LSTMBackwardFunction.apply(ctx.engine, needs, ctx.reverse, dy, dh_n, dc_n, *ctx.saved_tensors)
        return None, *grads, None, None


class LSTMBackwardFunction(torch.autograd.Function):
    """The backward pass as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(
        engine: str,
        needs: PerInput[bool],
        reverse: bool,
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
        dxw, dh0, dc0, d_bias, d_peephole = backward_op[engine](
            dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, weight_hr, lengths, reverse
        )
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
        _, _, ctx.reverse, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:12])  # the saved y, c, gates follow from the rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's own gradient: no engine has a second derivative by hand."""
        saved: list[Any]
        *saved, lengths = ctx.saved_tensors
        with torch.enable_grad():
            tensors: list[Any] = [None if t is None else t.detach().requires_grad_() for t in saved]
            douts, inputs = tensors[:3], PerInput(*tensors[3:])
            outs = reference.lstm_forward(*inputs, lengths, ctx.reverse, False)[:3]
            used = [(o, d) for o, d in zip(outs, douts, strict=True) if d is not None]
            present: list[Any] = [(t, dd) for t, dd in zip(inputs, dgrads, strict=True) if t is not None]
            grads = torch.autograd.grad(
                [o for o, _ in used],
                [t for t, _ in present],
                [d for _, d in used],
                create_graph=True,
                materialize_grads=True,
            )
        asked = [(g, dd) for g, (_, dd) in zip(grads, present, strict=True) if dd is not None]
        given = [t for t in tensors if t is not None]
        second: Iterator[Tensor | None] = repeat(None)
        if asked:
            firsts, seconds = zip(*asked, strict=True)
            second = iter(torch.autograd.grad(firsts, given, seconds, allow_unused=True))
        of_tensors = (None if t is None else next(second) for t in tensors)
        return None, None, None, *of_tensors, None, None, None, None
