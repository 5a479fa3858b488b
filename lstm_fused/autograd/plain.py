"""The autograd Function of most eager calls: of a plain layer, outside transforms, with `gradients`.

Short layers wait for the Python around the operators, and this has the least. Else it is `LSTMFunction`.
"""

from typing import Any

import torch
from torch import Tensor

from lstm_fused.autograd import tracing
from lstm_fused.autograd.base import Function, Version, unwrapped
from lstm_fused.autograd.function import layer_gradients
from lstm_fused.autograd.operators import below_autograd, forward_op, gradients_op
from lstm_fused.autograd.transforms import Tensors
from lstm_fused.contract import INPUTS

WEIGHT_IH, WEIGHT_HR = INPUTS.index("weight_ih"), INPUTS.index("weight_hr")


def serves(engine: str, operands: tuple[Any, ...]) -> bool:
    """True if `PlainFunction` can take this engine and these fields of `Inputs`, the variant's left out."""
    return engine in gradients_op and operands[WEIGHT_IH] is not None and operands[WEIGHT_HR] is None


class PlainFunction(Function):
    """One layer in one direction, with the arguments of `LSTMFunction` and without its saved outputs."""

    @staticmethod
    def forward(ctx: Any, engine: str, *operands: Any) -> Tensors:
        with below_autograd():
            y, h_n, c_n, c, gates = forward_op[engine](*operands)
        *tensors, lengths, ctx.reverse, _ = operands
        ctx.engine = engine
        ctx.set_materialize_grads(False)
        known = tracing.has_values(y)  # what follows is as in LSTMFunction
        ctx.version = Version(y) if known and len(y) > 1 else None
        ctx.save_for_backward(*tensors, lengths, y.data if known else y.clone(), c, gates)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None) -> tuple[Any, ...]:
        *tensors, lengths, y, c, gates = ctx.saved_tensors
        needs, changed = ctx.needs_input_grad, ctx.version is not None and ctx.version.changed()
        if changed or torch.is_grad_enabled() or tracing.under_transform():
            operands, douts = (*tensors, lengths, ctx.reverse, True), (dy, dh_n, dc_n)
            return layer_gradients(ctx.engine, needs, operands, (y, c, gates), douts, changed)
        x, weight_ih, weight_hh, _, _, peephole, _, h0, c0 = tensors
        _, x_needs, weight_ih_needs, weight_hh_needs, *_ = needs
        given = (  # the fields of GivenFactors
            x if weight_ih_needs else None,
            weight_ih if x_needs else None,
            y if weight_hh_needs else None,
            h0 if weight_hh_needs else None,
        )
        saved = c, gates, c0, weight_hh, peephole, None, lengths, ctx.reverse  # those of Saved
        with below_autograd():
            dx, dweight_ih, dweight_hh, dh0, dc0, dbias, dpeephole = gradients_op[ctx.engine](
                *given, *unwrapped((dy, dh_n, dc_n)), *saved
            )
        found = dx, dweight_ih, dweight_hh, dbias, dbias, dpeephole, None, dh0, dc0, None, None, None
        return None, *[gradient if wants else None for gradient, wants in zip(found, needs[1:], strict=True)]
