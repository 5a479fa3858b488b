"""Runs a sequence by launches of the kernels in step.py, product.py and variant.py at each time step."""

from functools import cache
from typing import Any

import torch
import triton.language as tl
from lstm_fused.kernels.plan import FUSED, Plan
from lstm_fused.kernels.product import (
    lstm_gradient_step_kernel,
    lstm_product_kernel,
    lstm_projection_step_kernel,
    lstm_recurrent_step_kernel,
)
from lstm_fused.kernels.replay import Launch, Steps, run
from lstm_fused.kernels.step import lstm_backward_step_kernel, lstm_forward_step_kernel
from lstm_fused.kernels.table import BackwardTensors, ForwardTensors
from lstm_fused.kernels.variant import lstm_norm_step_kernel
from torch import Tensor

from lstm_fused.contract import Inputs, OutputGradients, Saved, Variant, mapped


def forward(
    plan: Plan,
    inputs: Inputs,  # dense; x is xw [T, B, 4H], in the accumulation dtype
    y: Tensor,  # [T, B, P]
    c: Tensor | None,  # [T, B, H]
    gates: Tensor | None,  # [T, B, 4H]
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    xw, h0, c0, weight_hr = inputs.x, inputs.h0, inputs.c0, inputs.weight_hr
    (T, B, P), H = y.shape, c0.shape[1]
    h, h_next = h0.clone(), h0.new_empty(B, H)
    c_state = c0.to(xw.dtype, copy=True)
    variant, shared = dense_variant(inputs.variant)
    hw = None if variant.gain_hh is None else xw.new_empty(B, 4 * H)
    tensors = ForwardTensors(
        xw=xw,
        weight_hh=inputs.weight_hh,
        bias=inputs.bias,
        peephole=inputs.peephole,
        lengths=inputs.lengths,
        h=h,
        h_next=h_next,
        c_state=c_state,
        y=y,
        c_all=c,
        gates_all=gates,
        hw=hw,
        gain_hh=variant.gain_hh,
        h_mask=variant.h_mask,
        zoneout_h=variant.zoneout_h,
        zoneout_c=variant.zoneout_c,
        weight_hr=weight_hr,
    )
    sizes = {"B": B, "H": H, "P": P} | of_tensors(tensors)
    of_cell = sizes | plan.options | {"CLIP": variant.cell_clip, "SHARED": shared}
    if hw is None and weight_hr is None:
        of_cell |= dependent_launch(h0.device)
    launches = [Launch(lstm_forward_step_kernel, plan.grid(B, H), items(of_cell))]
    if hw is not None:
        of_product = items(sizes | plan.options)
        launches.insert(0, Launch(lstm_recurrent_step_kernel, plan.grid(B, 4 * H), of_product))
    if weight_hr is not None:
        of_product = items(sizes | plan.options | {"SHARED": shared})
        launches.append(Launch(lstm_projection_step_kernel, plan.grid(B, P), of_product))
    first, stride = (T - 1, -1) if inputs.reverse else (0, 1)
    run(Steps(tuple(launches), T, T, first, stride), tensors, h0.device)
    return (h_next if weight_hr is None and T % 2 else h), c_state.to(c0.dtype)


def backward(
    plan: Plan,
    saved: Saved,  # dense
    douts: OutputGradients,  # dense
    dxw: Tensor,  # [T, B, 4H]
    dhw: Tensor,  # [T, B, 4H], with layer norm
) -> tuple[Tensor, Tensor]:
    """Fill dxw, and dhw with layer norm; dh0 and dc0."""
    c, gates, weight_hr, hw = saved.c, saved.gates, saved.weight_hr, saved.hw
    dh_n, dc_n = douts.dh_n, douts.dc_n
    (T, B, H), P = c.shape, saved.weight_hh.shape[1]
    dh = c.new_zeros(B, P) if dh_n is None else dh_n.to(c.dtype, copy=True)
    dc = c.new_zeros(B, H) if dc_n is None else dc_n.to(c.dtype, copy=True)
    dh_t = None if weight_hr is None else gates.new_empty(B, P)
    variant, shared = dense_variant(saved.variant)
    kept = None if variant.zoneout_h is None else c.new_zeros(B, P)
    tensors = BackwardTensors(
        dy=douts.dy,
        dhw=dxw if hw is None else dhw,
        weight_hh=saved.weight_hh,
        dh_state=dh,
        dc_state=dc,
        c_all=c,
        c0=saved.c0,
        gates_all=gates,
        peephole=saved.peephole,
        lengths=saved.lengths,
        dxw=dxw,
        h_mask=variant.h_mask,
        zoneout_h=variant.zoneout_h,
        kept=kept,
        zoneout_c=variant.zoneout_c,
        weight_hr=weight_hr,
        dh_t=dh_t,
        hw=hw,
        gain_hh=variant.gain_hh,
    )
    sizes = {"B": B, "H": H} | of_tensors(tensors)
    of_cell = sizes | {"P": P, "CLIP": variant.cell_clip, "SHARED": shared} | plan.options
    if hw is None and weight_hr is None:
        of_cell |= dependent_launch(c.device)
    launches = [Launch(lstm_backward_step_kernel, plan.grid(B, H), items(of_cell))]
    if weight_hr is not None:
        of_product = items(sizes | {"P": P, "SHARED": shared} | plan.options)
        launches.insert(0, Launch(lstm_gradient_step_kernel, plan.grid(B, P), of_product))
    if hw is not None:
        tiles = {"BB": plan.BB, "BK": plan.BK, "num_warps": plan.num_warps} | FUSED
        launches.append(Launch(lstm_norm_step_kernel, plan.grid(B, H)[:1], items(sizes | tiles)))
    first, stride = (0, 1) if saved.reverse else (T - 1, -1)
    # One launch more, for what the first step hands on to h0.
    run(Steps(tuple(launches), T + 1, T, first, stride), tensors, c.device)
    return dh.to(gates.dtype), dc.to(gates.dtype)


def of_tensors(tensors: tuple[Tensor | None, ...]) -> dict[str, Any]:
    """The dtypes and the alignment of tensors whose addresses a kernel reads from the table."""
    kinds = tuple(None if tensor is None else getattr(tl, str(tensor.dtype)[6:]) for tensor in tensors)
    aligned = all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)
    return {"KINDS": kinds, "ALIGNED": aligned}


def items(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options in a hashable form."""
    return tuple(options.items())


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Options of programmatic dependent launch, on cards that have it."""
    able = device.type == "cuda" and torch.version.hip is None
    able = able and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if able else {}


def product(
    plan: Plan,
    left: Tensor,  # [B, K]
    right: Tensor,  # [K, N]
    out: Tensor,  # [B, N]
) -> None:
    """Out = left right."""
    (B, K), N = left.shape, right.shape[1]
    lstm_product_kernel[plan.grid(B, N)](left, right, out, B, N, K, *right.stride(), **plan.options)


def dense_variant(variant: Variant) -> tuple[Variant, bool]:
    """The variant with dense tensors, and whether each zoneout is one row, the same at all steps."""
    zoneouts = [z for z in (variant.zoneout_h, variant.zoneout_c) if z is not None]
    shared = all(z.stride()[:2] == (0, 0) for z in zoneouts)

    def rows(zoneout: Tensor | None) -> Tensor | None:
        return zoneout[0, 0] if zoneout is not None and shared else zoneout

    variant = variant._replace(zoneout_h=rows(variant.zoneout_h), zoneout_c=rows(variant.zoneout_c))
    return mapped(Tensor.contiguous, variant), shared
