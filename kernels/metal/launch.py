"""The Metal engine: runs a layer in one direction over the whole sequence."""

from typing import Any

import torch
import torch.nn.functional as F
from lstm_fused.kernels.metal.dispatches import (
    Layer,
    dispatch,
    in_command_buffers,
    layer_of,
    rounded_up,
    run_resident,
    steps,
    steps_back,
    tiles,
)
from lstm_fused.kernels.metal.library import library
from lstm_fused.kernels.metal.plan import Plan
from torch import Tensor

from lstm_fused.autograd import autocast
from lstm_fused.contract import PLAIN, Gradients, Inputs, OutputGradients, Outputs, Saved, Variant, mapped
from lstm_fused.reference import (
    accumulation_dtype,
    cell_before_zoneout,
    input_products,
    previous,
    vector_gradients,
)


def forward(inputs: Inputs, plan: Plan) -> Outputs:
    """Run one layer in one direction over the whole sequence; T, B, H and P are positive."""
    variant, inputs = dense_variant(inputs.variant), mapped(Tensor.contiguous, inputs._replace(variant=PLAIN))
    x, save = inputs.x, inputs.save
    (T, B, _), H, P = x.shape, inputs.c0.shape[1], inputs.h0.shape[1]
    wide = accumulation_dtype(x.dtype)
    with autocast.off(x.device):  # it would narrow the sums
        xw = input_products(x, inputs.weight_ih, inputs.bias).contiguous()
    h, c = inputs.h0.clone(), inputs.c0.to(wide, copy=True)
    y = x.new_empty(T, B, P)
    c_all = x.new_empty((T, B, H) if save else (0,), dtype=wide)
    gates = x.new_empty((T, B, 4 * H) if save else (0,))
    options = inputs.peephole, inputs.lengths, save, None, inputs.weight_hr
    layer = layer_of(plan, T, B, H, P, inputs.reverse, *options, variant)
    cell = xw, tiled(inputs.weight_hh, 4), or_any(inputs.peephole, h), or_any_lengths(inputs)
    states = h, c, y, *((c_all, gates) if save else (c, h))
    kernels = library(x.dtype, plan)
    if plan.kernel == "resident":
        run_resident(kernels.forward_resident, plan, layer, T, *cell, *states)
    else:
        forward_steps(kernels, plan, layer, variant, inputs.weight_hr, cell, states)
    return Outputs(y, h, c.to(x.dtype), c_all, gates)


def backward(saved: Saved, douts: OutputGradients, plan: Plan) -> Gradients:
    """Carry the gradients of y, h_n and c_n back over the whole sequence; T, B, H and P are positive."""
    variant, saved = dense_variant(saved.variant), mapped(Tensor.contiguous, saved._replace(variant=PLAIN))
    douts = mapped(Tensor.contiguous, douts)
    c_all, gates, c0 = saved.c, saved.gates, saved.c0
    (T, B, H), P, dtype = c_all.shape, saved.weight_hh.shape[1], gates.dtype
    dh, dc = first_gradient(douts.dh_n, c_all, P), first_gradient(douts.dc_n, c_all, H)
    dxw = torch.empty_like(gates)
    dhw = gates.new_empty(0) if saved.hw is None else torch.empty_like(gates)
    options = saved.peephole, saved.lengths, False, douts.dy, saved.weight_hr
    layer = layer_of(plan, T, B, H, P, saved.reverse, *options, variant)
    cell = or_any(douts.dy, c0), c_all, c0, gates, or_any(saved.peephole, c0), or_any_lengths(saved), dxw
    kernels = library(dtype, plan)
    if plan.kernel == "resident":
        tensors = tiled(saved.weight_hh, 4), *cell, dh, dc
        # One iteration more computes the gradient of h0.
        run_resident(kernels.backward_resident, plan, layer, T + 1, *tensors)
    else:
        backward_steps(kernels, plan, layer, variant, saved, cell, (dh, dc, dhw))
    c_prev = previous(c_all, c0.to(c_all.dtype), saved.lengths, saved.reverse)
    c = cell_before_zoneout(c_all, c_prev, gates, variant.zoneout_c, variant.cell_clip)
    return Gradients(dxw, dh.to(dtype), dc.to(dtype), *vector_gradients(dxw, c, c_prev, saved.peephole), dhw)


def forward_steps(
    kernels: Any,
    plan: Plan,
    layer: Layer,
    variant: Variant,
    weight_hr: Tensor | None,
    cell: tuple[Tensor, ...],
    states: tuple[Tensor, ...],
) -> None:
    """Run a forward pass step by step; only the kernels that the layer needs become pipelines."""
    (xw, weight_hh, _, lengths), (h, c, y, *_) = cell, states
    over_H, over_P = tiles(plan, layer.B8, layer.H8), tiles(plan, layer.B8, layer.P8)
    h_mask, zoneout_h, zoneout_c = (or_any(mask, h) for mask in variant[1:4])
    operand = h.new_zeros(2, layer.B8, layer.P8)
    operand[0, : layer.B, : layer.P] = h if variant.h_mask is None else h * variant.h_mask
    m, normed, runs = h, c, []
    if variant.gain_hh is not None:
        hw, normed = (xw.new_empty(layer.B, 4 * layer.H) for _ in range(2))
        runs.append(dispatch(kernels.recurrent_step, over_H, layer, weight_hh, operand, hw))
        runs.append(dispatch(kernels.norm_step, (layer.B, 32), layer, hw, variant.gain_hh, normed))
    if weight_hr is not None:
        m = h.new_zeros(layer.B8, layer.H8)
    masks = h_mask, zoneout_h, zoneout_c, clip_of(variant, c)
    tensors = *cell, operand, *states, *masks, m, normed
    runs.append(dispatch(kernels.forward_step, over_H, layer, *tensors))
    if weight_hr is not None:
        tensors = m, tiled(weight_hr, 1), lengths, operand, h, y, h_mask, zoneout_h
        runs.append(dispatch(kernels.project_step, over_P, layer, *tensors))
    for step in in_command_buffers(steps(layer.T, bool(layer.reverse)), plan, layer):
        for run in runs:
            run(step)


def backward_steps(
    kernels: Any,
    plan: Plan,
    layer: Layer,
    variant: Variant,
    saved: Saved,
    cell: tuple[Tensor, ...],
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Run a backward pass step by step; see `forward_steps`."""
    (dy, _, c0, gates, _, lengths, dxw), (dh, dc, dhw) = cell, gradients
    weight, runs = tiled(saved.weight_hh, 4), []
    over_H, over_P = tiles(plan, layer.B8, layer.H8), tiles(plan, layer.B8, layer.P8)
    h_mask, zoneout_h, zoneout_c = (or_any(mask, c0) for mask in variant[1:4])
    operand = gates.new_zeros(2, layer.B8, 4, layer.H8)
    kept = dh if variant.zoneout_h is None else torch.zeros_like(dh)
    dh_t = c0
    if saved.weight_hr is not None:
        dh_t = gates.new_zeros(layer.B8, layer.P8)
        tensors = weight, operand, dy, lengths, dh, kept, h_mask, zoneout_h, dh_t
        runs.append(dispatch(kernels.gradient_step, over_P, layer, *tensors))
        weight = tiled(saved.weight_hr, 1)
    masks = h_mask, zoneout_h, zoneout_c, clip_of(variant, dc)
    tensors = weight, *cell, operand, dh, dc, kept, *masks, dh_t
    runs.append(dispatch(kernels.backward_step, over_H, layer, *tensors))
    if saved.hw is not None:
        tensors = dxw, saved.hw, or_any(variant.gain_hh, c0), dhw, operand
        runs.append(dispatch(kernels.norm_backward_step, (layer.B, 32), layer, *tensors))
    for step in in_command_buffers(steps_back(layer.T, bool(layer.reverse)), plan, layer):
        for run in runs if step.t >= 0 else runs[:1]:  # the first computes the gradient of h0 too
            run(step)


def tiled(weight: Tensor, gates: int) -> Tensor:
    """The weights of each gate [N, K] padded with zeros to whole 8 x 8 tiles, [gates, N8, K8]."""
    blocks = weight.unflatten(0, (gates, -1))
    N, K = blocks.shape[1:]
    padding = 0, rounded_up(K, 8) - K, 0, rounded_up(N, 8) - N
    return (F.pad(blocks, padding) if any(padding) else blocks).contiguous()


def first_gradient(given: Tensor | None, c: Tensor, width: int) -> Tensor:
    """A copy of the gradient of a last state [B, width] in the dtype of c, or zeros."""
    if given is None:
        return c.new_zeros(c.shape[1], width)
    return given.to(c.dtype, copy=True)


def dense_variant(variant: Variant) -> Variant:
    """The variant with dense tensors; zoneout masks keep their strides over steps and rows."""

    def rows(zoneout: Tensor | None) -> Tensor | None:
        return zoneout if zoneout is None or zoneout.stride(2) == 1 else zoneout.contiguous()

    gain, h_mask = (None if v is None else v.contiguous() for v in (variant.gain_hh, variant.h_mask))
    return Variant(gain, h_mask, rows(variant.zoneout_h), rows(variant.zoneout_c), variant.cell_clip)


def or_any(given: Tensor | None, instead: Tensor) -> Tensor:
    """The argument, or another tensor of its dtype that the kernel then ignores: it needs every buffer."""
    return instead if given is None else given


def or_any_lengths(record: Inputs | Saved) -> Tensor:
    """The lengths, or an int64 tensor."""
    return record.c0.new_empty(1, dtype=torch.int64) if record.lengths is None else record.lengths


def clip_of(variant: Variant, like: Tensor) -> Tensor:
    """The bound on c as a tensor, in the accumulation dtype."""
    return like if variant.cell_clip is None else like.new_full((1,), variant.cell_clip)
