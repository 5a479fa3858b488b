"""The Metal engine: runs a layer in one direction, one dispatch per step or one for the sequence."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
    time_steps,
    vector_gradients,
)


class Layer(NamedTuple):
    """The struct of this name in cell.metal, field by field."""

    T: int
    B: int
    H: int
    P: int
    B8: int
    H8: int
    P8: int
    reverse: int
    peephole: int
    lengths: int
    save: int
    dy: int
    projection: int
    norm: int
    h_mask: int
    zoneout_h: int
    zoneout_c: int
    clip: int
    zoneout_h_t: int
    zoneout_h_b: int
    zoneout_c_t: int
    zoneout_c_b: int


class Step(NamedTuple):
    """The struct of this name in cell.metal, field by field."""

    t: int
    after: int
    before: int
    parity: int


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
    weight_hh = tiled(inputs.weight_hh, 4)
    peephole, lengths = or_any(inputs.peephole, h), or_any_lengths(inputs)
    states = h, c, y, *((c_all, gates) if save else (c, h))
    kernels = library(x.dtype, plan)
    if plan.kernel == "resident":
        threads = layer.H8 // 8 * 32
        dispatch(kernels.forward_resident, layer.B8 // 8, threads)(
            layer, xw, weight_hh, peephole, lengths, *states
        )
        return Outputs(y, h, c.to(x.dtype), c_all, gates)

    h_mask, zoneout_h, zoneout_c = (or_any(mask, h) for mask in variant[1:4])
    operand = x.new_zeros(2, layer.B8, layer.P8)
    operand[0, :B, :P] = h if variant.h_mask is None else h * variant.h_mask
    projected = inputs.weight_hr is not None
    m = x.new_zeros(layer.B8, layer.H8) if projected else h
    hw, normed = (xw.new_empty(B, 4 * H) if variant.gain_hh is not None else c for _ in range(2))
    masks = h_mask, zoneout_h, zoneout_c, clip_of(variant, c)
    cell = xw, weight_hh, peephole, lengths, operand, *states, *masks
    advance = dispatch(kernels.forward_step, *tiles(plan, layer.B8, layer.H8))
    product = dispatch(kernels.recurrent_step, *tiles(plan, layer.B8, layer.H8))
    norm = dispatch(kernels.norm_step, B, 32)
    project = dispatch(kernels.project_step, *tiles(plan, layer.B8, layer.P8))
    weight_hr = tiled(inputs.weight_hr, 1) if inputs.weight_hr is not None else h
    for step in steps(T, inputs.reverse):
        if variant.gain_hh is not None:
            product(layer, step, weight_hh, operand, hw)
            norm(layer, hw, variant.gain_hh, normed)
        advance(layer, step, *cell, m, normed)
        if projected:
            project(layer, step, m, weight_hr, lengths, operand, h, y, h_mask, zoneout_h)
    return Outputs(y, h, c.to(x.dtype), c_all, gates)


def backward(saved: Saved, douts: OutputGradients, plan: Plan) -> Gradients:
    """Carry the gradients of y, h_n and c_n back over the whole sequence; T, B, H and P are positive."""
    variant, saved = dense_variant(saved.variant), mapped(Tensor.contiguous, saved._replace(variant=PLAIN))
    douts = mapped(Tensor.contiguous, douts)
    c_all, gates, c0, reverse, weight_hr = saved.c, saved.gates, saved.c0, saved.reverse, saved.weight_hr
    (T, B, H), P, dtype = c_all.shape, saved.weight_hh.shape[1], gates.dtype
    dh, dc = first_gradient(douts.dh_n, c_all, P), first_gradient(douts.dc_n, c_all, H)
    dxw = torch.empty_like(gates)
    options = saved.peephole, saved.lengths, False, douts.dy, weight_hr
    layer = layer_of(plan, T, B, H, P, reverse, *options, variant)
    weight_hh, dy = tiled(saved.weight_hh, 4), or_any(douts.dy, c0)
    peephole, lengths = or_any(saved.peephole, c0), or_any_lengths(saved)
    kernels = library(dtype, plan)
    dhw = gates.new_empty(0)
    if plan.kernel == "resident":
        dispatch(kernels.backward_resident, layer.B8 // 8, layer.H8 // 8 * 32)(
            layer, weight_hh, dy, c_all, c0, gates, peephole, lengths, dxw, dh, dc
        )
    else:
        h_mask, zoneout_h, zoneout_c = (or_any(mask, c0) for mask in variant[1:4])
        operand = gates.new_zeros(2, layer.B8, 4, layer.H8)
        kept = dh if variant.zoneout_h is None else torch.zeros_like(dh)
        dh_t = c0 if weight_hr is None else gates.new_zeros(layer.B8, layer.P8)
        weight = weight_hh if weight_hr is None else tiled(weight_hr, 1)
        cell = dy, c_all, c0, gates, peephole, lengths, dxw, operand, dh, dc, kept
        masks = h_mask, zoneout_h, zoneout_c, clip_of(variant, dc)
        retreat = dispatch(kernels.backward_step, *tiles(plan, layer.B8, layer.H8))
        gradient = dispatch(kernels.gradient_step, *tiles(plan, layer.B8, layer.P8))
        norm = dispatch(kernels.norm_backward_step, B, 32)
        if saved.hw is not None:
            dhw = torch.empty_like(gates)
        for step in steps_back(T, reverse):
            if weight_hr is not None:
                gradient(layer, step, weight_hh, operand, dy, lengths, dh, kept, h_mask, zoneout_h, dh_t)
            if step.t >= 0 or weight_hr is None:
                retreat(layer, step, weight, *cell, *masks, dh_t)
            if step.t >= 0 and saved.hw is not None:
                norm(layer, step, dxw, saved.hw, variant.gain_hh, dhw, operand)
    c_prev = previous(c_all, c0.to(c_all.dtype), saved.lengths, reverse)
    c = cell_before_zoneout(c_all, c_prev, gates, variant.zoneout_c, variant.cell_clip)
    return Gradients(dxw, dh.to(dtype), dc.to(dtype), *vector_gradients(dxw, c, c_prev, saved.peephole), dhw)


def layer_of(
    plan: Plan,
    T: int,
    B: int,
    H: int,
    P: int,
    reverse: bool,
    peephole: Tensor | None,
    lengths: Tensor | None,
    save: bool,
    dy: Tensor | None,
    weight_hr: Tensor | None,
    variant: Variant,
) -> Layer:
    """The first argument of every kernel."""
    strides = [
        stride
        for zoneout in (variant.zoneout_h, variant.zoneout_c)
        for stride in ((0, 0) if zoneout is None else zoneout.stride()[:2])
    ]
    given = peephole, lengths, save or None, dy, weight_hr, variant.gain_hh, variant.h_mask
    given = *given, variant.zoneout_h, variant.zoneout_c, variant.cell_clip
    sizes = T, B, H, P, rounded_up(B, plan.BB), rounded_up(H, 8), rounded_up(P, 8)
    return Layer(*sizes, int(reverse), *[int(option is not None) for option in given], *strides)


def steps(T: int, reverse: bool) -> Iterator[Step]:
    """The steps of a forward pass, in order."""
    for n, t in enumerate(time_steps(T, reverse)):
        yield Step(t, -1, -1, n % 2)


def steps_back(T: int, reverse: bool) -> Iterator[Step]:
    """The steps of a backward pass, in order, and one more, which computes the gradient of h0."""
    order = [-1, *reversed(list(time_steps(T, reverse))), -1, -1]
    for n in range(T + 1):
        yield Step(order[n + 1], order[n], order[n + 2], n % 2)


def dispatch(kernel: Any, groups: int, threads: int) -> Callable[..., None]:
    """A function that runs a kernel on so many threadgroups of so many threads."""
    total = groups * threads

    def run(*arguments: Any) -> None:
        kernel(*arguments, threads=total, group_size=threads)

    return run


def tiles(plan: Plan, rows: int, columns: int) -> tuple[int, int]:
    """Threadgroups of the step kernels for so many rows and columns, and their threads."""
    return rows // plan.BB * (columns // 8), 128


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


def rounded_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not less than a size."""
    return -(-size // multiple) * multiple
