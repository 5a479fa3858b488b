"""The GPU engine: the contract of `lstm_fused.reference`, kept by one kernel per step or per sequence."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lstm_fused.kernels import sequence, steps
from lstm_fused.kernels.choose import card_at, choose, named, plans, precision
from lstm_fused.kernels.plan import Layer, Plan
from torch import Tensor

from lstm_fused import autocast
from lstm_fused.reference import (
    PLAIN,
    Backward,
    Forward,
    Variant,
    accumulation_dtype,
    cell_before_zoneout,
    previous,
    vector_gradients,
)


def forward(
    x: Tensor,  # [T, B, I]
    weight_ih: Tensor | None,  # [4H, I]
    weight_hh: Tensor,  # [4H, P]
    bias: Tensor | None,  # [4H]
    peephole: Tensor | None,  # [3H]
    weight_hr: Tensor | None,  # [P, H]
    h0: Tensor,  # [B, P]
    c0: Tensor,  # [B, H]
    lengths: Tensor | None,  # [B], int64
    reverse: bool,
    save: bool,
    variant: Variant = PLAIN,
    plan: Plan | None = None,
) -> Forward:
    """Run one layer in one direction over the whole sequence, by this plan or the table's."""
    (T, B, _), H, P = x.shape, c0.shape[1], h0.shape[1]
    y = x.new_empty(T, B, P)
    c = x.new_empty((T, B, H) if save else (0,), dtype=accumulation_dtype(x.dtype))
    gates = x.new_empty((T, B, 4 * H) if save else (0,))
    if y.numel() == 0:
        return Forward(y, h0.clone(), c0.clone(), c, gates)
    plan = plan or of_table("forward", x, c0, weight_hr, variant)
    with on(x.device):
        xw = input_projection(x, weight_ih)
        weights = map(dense, (weight_hh, bias, peephole))
        states = map(dense, (h0, c0, lengths))
        saved = (c, gates) if save else (None, None)
        if plan.kernel == "step":
            tensors = xw, *weights, dense(weight_hr), *states, y, *saved
            h_n, c_n = steps.forward(plan, *tensors, reverse, variant)
        else:
            h_n, c_n = sequence.forward(plan, xw, *weights, *states, y, *saved, reverse)
    return Forward(y, h_n, c_n, c, gates)


def backward(
    dy: Tensor | None,  # [T, B, P]
    dh_n: Tensor | None,  # [B, P]
    dc_n: Tensor | None,  # [B, H]
    c: Tensor,  # [T, B, H]
    gates: Tensor,  # [T, B, 4H]
    c0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, P]
    peephole: Tensor | None,  # [3H]
    weight_hr: Tensor | None,  # [P, H]
    lengths: Tensor | None,  # [B], int64
    reverse: bool,
    variant: Variant = PLAIN,
    hw: Tensor | None = None,  # [T, B, 4H], accumulation dtype
    plan: Plan | None = None,
) -> Backward:
    """Carry the gradients of y, h_n and c_n (None is zero) back over the whole sequence."""
    B, H = c0.shape
    dxw = torch.empty_like(gates, memory_format=torch.contiguous_format)
    dhw = gates.new_empty(0) if hw is None else torch.empty_like(dxw)
    if dxw.numel() == 0:
        dh0 = gates.new_zeros(B, weight_hh.shape[1]) if dh_n is None else dh_n.clone()
        dc0 = gates.new_zeros(B, H) if dc_n is None else dc_n.clone()
        return Backward(dxw, dh0, dc0, gates.new_zeros(4 * H), gates.new_zeros(3 * H), dhw)
    plan = plan or of_table("backward", gates, c0, weight_hr, variant)
    with on(c.device):
        douts = map(dense, (dy, dh_n, dc_n))
        saved = map(dense, (c, gates, c0, weight_hh, peephole))
        if plan.kernel == "step":
            tensors = *douts, *saved, dense(weight_hr), dense(lengths), dxw
            dh0, dc0 = steps.backward(plan, *tensors, reverse, variant, dense(hw), dhw)
            c_prev = previous(c, c0.to(c.dtype), lengths, reverse)
            c = cell_before_zoneout(c, c_prev, gates, variant.zoneout_c, variant.cell_clip)
            sums = vector_gradients(dxw, c, c_prev, peephole)
            return Backward(dxw, dh0, dc0, *sums, dhw)
        found = sequence.backward(plan, *douts, *saved, dense(lengths), dxw, reverse)
        return Backward(dxw, *found, dhw)


def of_table(direction: str, steps: Tensor, c0: Tensor, weight_hr: Tensor | None, variant: Variant) -> Plan:
    """The plan that `lstm_fused.kernels.choose` has for a layer, given a tensor of all steps."""
    B, H = c0.shape
    options = weight_hr is not None, bool(variant.names())
    layer = Layer(direction, H, B, steps.dtype, precision(), *options)
    return choose(layer, card_at(steps.device), named())


def input_projection(x: Tensor, weight_ih: Tensor | None) -> Tensor:
    """W_ih x_t of all steps at once, in the accumulation dtype: [T, B, 4H]."""
    wide = accumulation_dtype(x.dtype)
    if weight_ih is None:
        return x.to(wide).contiguous()
    rows = x.flatten(0, 1)
    if wide == torch.float64:
        # A sequence in pieces is to equal the whole bit for bit. What a library makes of a row depends on how
        # many rows there are; what this kernel makes of it does not.
        xw = rows.new_empty(len(rows), len(weight_ih))
        plan = next(plans("step", Layer("forward", len(weight_ih) // 4, x.shape[1], x.dtype, "ieee")))
        steps.product(plan, dense(rows), dense(weight_ih).T, xw)
    else:
        with autocast.off(x.device):  # it would narrow the sums
            if wide == x.dtype:
                xw = F.linear(rows, weight_ih)
            elif x.is_cuda:
                xw = torch.mm(rows, weight_ih.T, out_dtype=wide)
            else:
                xw = rows.to(wide) @ weight_ih.to(wide).T
    return xw.view(*x.shape[:2], -1)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to this card."""
    there = device.type == "cpu" or device.index == torch.cuda.current_device()
    return nullcontext() if there else torch.cuda.device(device)


def dense(tensor: Tensor | None) -> Any:
    """The kernels take dense tensors only."""
    return None if tensor is None else tensor.contiguous()
