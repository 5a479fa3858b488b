"""Layer norm of W_ih x_t, outside the recurrence, differentiable to any order."""

from typing import Any

import torch
from torch import Tensor

from lstm_fused.autograd import tracing
from lstm_fused.autograd.gradients import gain_hh_gradient
from lstm_fused.reference import EPS, accumulation_dtype, composed_layer_norm, norm_backward


def layer_norm(v: Tensor, gain: Tensor) -> Tensor:
    """Gain * (v - mean) / sqrt(variance + 1e-5) over the last dimension of v [T, B, 4H]."""
    if tracing.recorded() or tracing.under_transform():
        return composed_layer_norm(v, gain)
    result: Tensor = LayerNorm.apply(v, gain)[0]
    return result


class LayerNorm(torch.autograd.Function):
    """PyTorch's kernels for the first derivative, the reference's formula for higher ones."""

    @staticmethod
    def forward(v: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(v, gain.shape, gain, None, EPS)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, d: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None]:
        v, gain, mean, rstd = ctx.saved_tensors
        if d is None:
            return None, None
        if not torch.is_grad_enabled():
            needs = [*ctx.needs_input_grad, False]
            dv, d_gain, _ = torch.ops.aten.native_layer_norm_backward(
                d, v, gain.shape, mean, rstd, gain, None, needs
            )
            return dv, d_gain
        dtype, wide = v.dtype, accumulation_dtype(v.dtype)
        d, v, gain = d.to(wide), v.to(wide), gain.to(wide)
        return norm_backward(d, v, gain).to(dtype), gain_hh_gradient(d, v).to(dtype)
