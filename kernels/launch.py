"""The Triton engine: runs a layer in one direction, by launches that steps.py or sequence.py makes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lstm_fused.kernels import scratch, sequence, steps
from lstm_fused.kernels.choose import card_at, choose, named, plans, precision
from lstm_fused.kernels.plan import KERNELS, Layer, Plan, record
from torch import Tensor

from lstm_fused.autograd import autocast
from lstm_fused.contract import Gradients, Inputs, OutputGradients, Outputs, Saved, Variant
from lstm_fused.reference import accumulation_dtype, cell_before_zoneout, previous, vector_gradients

# The kernel that launches each step; it is the last, so that no other is imported here.
PER_STEP = next(kernel for kernel in KERNELS[::-1] if record(kernel).per_step)


def forward(inputs: Inputs, plan: Plan | None = None) -> Outputs:
    """Run one layer in one direction over the whole sequence, by this plan or the one that is chosen."""
    x, h0, c0, save = inputs.x, inputs.h0, inputs.c0, inputs.save
    scratch.raise_if_timed_out(x.device)
    (T, B, _), H, P = x.shape, c0.shape[1], h0.shape[1]
    y = x.new_empty(T, B, P)
    c = x.new_empty((T, B, H) if save else (0,), dtype=accumulation_dtype(x.dtype))
    gates = x.new_empty((T, B, 4 * H) if save else (0,))
    if y.numel() == 0:
        return Outputs(y, h0.clone(), c0.clone(), c, gates)
    plan = plan or choose_plan("forward", x, c0, inputs.weight_hr, inputs.variant)
    with on(x.device):
        inputs = dense(inputs._replace(x=input_projection(x, inputs.weight_ih), weight_ih=None))
        run = steps.forward if record(plan.kernel).per_step else sequence.forward
        h_n, c_n = run(plan, inputs, y, *((c, gates) if save else (None, None)))
    return Outputs(y, h_n, c_n, c, gates)


def backward(saved: Saved, douts: OutputGradients, plan: Plan | None = None) -> Gradients:
    """Carry the gradients of y, h_n and c_n back over the whole sequence."""
    gates, c0, variant = saved.gates, saved.c0, saved.variant
    scratch.raise_if_timed_out(gates.device)
    B, H = c0.shape
    dxw = torch.empty_like(gates, memory_format=torch.contiguous_format)
    dhw = gates.new_empty(0) if saved.hw is None else torch.empty_like(dxw)
    if dxw.numel() == 0:
        dh0 = gates.new_zeros(B, saved.weight_hh.shape[1]) if douts.dh_n is None else douts.dh_n.clone()
        dc0 = gates.new_zeros(B, H) if douts.dc_n is None else douts.dc_n.clone()
        return Gradients(dxw, dh0, dc0, gates.new_zeros(4 * H), gates.new_zeros(3, H), dhw)
    plan = plan or choose_plan("backward", gates, c0, saved.weight_hr, variant)
    with on(gates.device):
        if not record(plan.kernel).per_step:
            return Gradients(dxw, *sequence.backward(plan, dense(saved), dense(douts), dxw), dhw)
        dh0, dc0 = steps.backward(plan, dense(saved), dense(douts), dxw, dhw)
        c_prev = previous(saved.c, c0.to(saved.c.dtype), saved.lengths, saved.reverse)
        c = cell_before_zoneout(saved.c, c_prev, gates, variant.zoneout_c, variant.cell_clip)
        return Gradients(dxw, dh0, dc0, *vector_gradients(dxw, c, c_prev, saved.peephole), dhw)


def choose_plan(
    direction: str, steps: Tensor, c0: Tensor, weight_hr: Tensor | None, variant: Variant
) -> Plan:
    """The plan that `lstm_fused.kernels.choose` chooses; ``steps`` is a tensor of all steps, [T, B, ...]."""
    B, H = c0.shape
    P = 0 if weight_hr is None else weight_hr.shape[0]
    layer = Layer(direction, H, B, steps.dtype, precision(), P, bool(variant.names()))
    return choose(layer, card_at(steps.device), named())


def input_projection(x: Tensor, weight_ih: Tensor | None) -> Tensor:
    """W_ih x_t of all steps at once, in the accumulation dtype: [T, B, 4H]."""
    wide = accumulation_dtype(x.dtype)
    if weight_ih is None:
        return x.to(wide).contiguous()
    rows = x.flatten(0, 1)
    if wide == torch.float64:
        # A sequence in pieces must equal the whole one bit for bit. A library's rounding of a row depends on
        # the number of rows; this kernel's does not.
        xw = rows.new_empty(len(rows), len(weight_ih))
        plan = next(plans(PER_STEP, Layer("forward", len(weight_ih) // 4, x.shape[1], x.dtype, "ieee")))
        steps.product(plan, rows.contiguous(), weight_ih.contiguous().T, xw)
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


def dense(record: Any) -> Any:
    """The record with its own tensors contiguous, because the kernels take no strides; not its variant's."""
    return type(record)(*[v.contiguous() if isinstance(v, Tensor) else v for v in record])
