"""The whole sequence in one launch of a kernel, or in one launch for each wave of batch tiles."""

import torch
from lstm_fused.kernels.plan import Plan, record
from torch import Tensor


def forward(
    plan: Plan,
    xw: Tensor,  # [T, B, 4H]
    weight_hh: Tensor,  # [4H, H]
    bias: Tensor | None,  # [4H]
    peephole: Tensor | None,  # [3H]
    h0: Tensor,  # [B, H]
    c0: Tensor,  # [B, H]
    lengths: Tensor | None,  # [B]
    y: Tensor,  # [T, B, H]
    c: Tensor | None,  # [T, B, H]
    gates: Tensor | None,  # [T, B, 4H]
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    tensors = (xw, weight_hh, bias, peephole, lengths, h0, c0, h_n, c_n, y, c, gates)
    record(plan.kernel).forward(plan, tensors, y.shape, reverse)
    return h_n, c_n


def backward(
    plan: Plan,
    dy: Tensor | None,  # [T, B, H]
    dh_n: Tensor | None,  # [B, H]
    dc_n: Tensor | None,  # [B, H]
    c: Tensor,  # [T, B, H]
    gates: Tensor,  # [T, B, 4H]
    c0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    peephole: Tensor | None,  # [3H]
    lengths: Tensor | None,  # [B]
    dxw: Tensor,  # [T, B, 4H]
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fill dxw; dh0, dc0, and the gradients of bias and peephole."""
    T, B, H = c.shape
    found = torch.empty_like(c0), torch.empty_like(c0), c0.new_empty(4 * H), c0.new_empty(3 * H)
    partials = c.new_empty(plan.grid(B, H)[0], 7, H)
    tensors = (dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, lengths, dxw, *found, partials)
    record(plan.kernel).backward(plan, tensors, (T, B, H), reverse)
    return found
