"""The whole sequence in one launch of a kernel, or in one launch for each wave of programs."""

import torch
from lstm_fused.kernels.plan import Plan, record
from torch import Tensor

from lstm_fused.contract import Inputs, OutputGradients, Saved


def forward(
    plan: Plan,
    inputs: Inputs,  # dense; x is xw [T, B, 4H], in the accumulation dtype
    y: Tensor,  # [T, B, H]
    c: Tensor | None,  # [T, B, H]
    gates: Tensor | None,  # [T, B, 4H]
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    h0, c0 = inputs.h0, inputs.c0
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    weights = inputs.weight_hh, inputs.bias, inputs.peephole
    tensors = (inputs.x, *weights, inputs.lengths, h0, c0, h_n, c_n, y, c, gates)
    record(plan.kernel).forward(plan, tensors, y.shape, inputs.reverse)
    return h_n, c_n


def backward(
    plan: Plan,
    saved: Saved,  # dense
    douts: OutputGradients,  # dense
    dxw: Tensor,  # [T, B, 4H]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fill dxw; dh0, dc0, and the gradients of bias and peephole."""
    c, c0 = saved.c, saved.c0
    T, B, H = c.shape
    found = torch.empty_like(c0), torch.empty_like(c0), c0.new_empty(4 * H), c0.new_empty(3, H)
    partials = c.new_empty(plan.grid(B, H)[0], 7, H)
    states, weights = (c, saved.gates, c0), (saved.weight_hh, saved.peephole)
    tensors = (*douts, *states, *weights, saved.lengths, dxw, *found, partials)
    record(plan.kernel).backward(plan, tensors, (T, B, H), saved.reverse)
    return found
