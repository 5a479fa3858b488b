"""The gradients of all inputs and weights, computed after the recurrence from what an engine returns."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused.autograd.products import add_product, outer_sum, product, rows
from lstm_fused.autograd.tracing import has_values_on_cpu
from lstm_fused.contract import Gradients, Inputs, OutputGradients, Spec
from lstm_fused.reference import accumulation_dtype, is_valid, normalized, previous, time_steps

# Share of valid steps up to which the weight gradients' products gather them. Measured: a training step is
# 1.1 to 1.5 times as fast with 1/2 of the steps valid, 1.0 or a little more with 3/4.
GATHER_UP_TO = 0.7


class Kept(NamedTuple):
    """Tensors that the gradients of the weights are computed from, besides the inputs."""

    y: Annotated[Tensor, Spec("T B P")]  # times h_mask, if given
    c: Annotated[Tensor, Spec("T B H")]
    gates: Annotated[Tensor, Spec("T B 4H")]
    hw: Annotated[Tensor | None, Spec("T B 4H")] = None  # W_hh h_{t-1}, with layer norm


def input_gradients(
    needed: Sequence[str],
    reuse_sums: bool,
    douts: OutputGradients,
    inputs: Inputs,
    kept: Kept,
    engine_grads: Gradients,
) -> tuple[Tensor, ...]:
    """Compute the needed gradients after the recurrence.

    Args:
        needed: the names of the inputs that need a gradient.
        reuse_sums: whether the engine's sums over the batch cover exactly these rows; if not, recompute them.
        douts: gradients of the outputs.
        inputs: arguments of the forward pass, with h0 times h_mask.
        kept: results of the forward pass.
        engine_grads: results of the engine's backward pass.
    """
    lengths, reverse, variant = inputs.lengths, inputs.reverse, inputs.variant
    c, d_bias, d_peephole = kept.c, engine_grads.dbias, engine_grads.dpeephole
    if not reuse_sums or variant.zoneout_c is not None:
        wide = c.to(accumulation_dtype(c.dtype))
        c_prev = previous(wide, inputs.c0.to(wide.dtype), lengths, reverse)
        c = reference.cell_before_zoneout(wide, c_prev, kept.gates, variant.zoneout_c, variant.cell_clip)
        if not reuse_sums:
            d_bias, d_peephole = reference.vector_gradients(engine_grads.dxw, c, c_prev, inputs.peephole)
    grads = product_gradients(needed, inputs, kept.y, engine_grads.dxw, engine_grads.dhw)
    grads |= {"bias": d_bias, "peephole": d_peephole, "h0": engine_grads.dh0, "c0": engine_grads.dc0}
    if "weight_hr" in needed:
        grads["weight_hr"] = weight_hr_gradient(engine_grads.dhw, douts, c, kept.gates, inputs)
    if kept.hw is not None and "gain_hh" in needed:
        grads["gain_hh"] = gain_hh_gradient(engine_grads.dxw, kept.hw)
    return tuple(grads[name] for name in needed)


def product_gradients(
    needed: Sequence[str], inputs: Inputs, y: Tensor, dxw: Tensor, dhw: Tensor
) -> dict[str, Tensor]:
    """The needed ones of the gradients of x, W_ih and W_hh: each is one product over all steps and rows."""
    x, weight_ih, h0, lengths, reverse = inputs.x, inputs.weight_ih, inputs.h0, inputs.lengths, inputs.reverse
    grads = {}
    steps = None if lengths is None else steps_to_gather(lengths, x.shape[0])
    if lengths is None or steps is None:
        if "x" in needed:
            grads["x"] = dxw if weight_ih is None else product(dxw, weight_ih)
        if "weight_ih" in needed:
            grads["weight_ih"] = weight_ih_gradient(dxw, x, lengths)
        if "weight_hh" in needed:
            grads["weight_hh"] = weight_hh_gradient(dhw, y, h0, lengths, reverse)
    else:
        da = gather(dxw, steps)
        if "x" in needed:
            grads["x"] = dxw if weight_ih is None else scatter(product(da, weight_ih), steps, *y.shape[:2])
        if "weight_ih" in needed:
            grads["weight_ih"] = outer_sum(da, gather(x, steps))
        if "weight_hh" in needed:
            da = da if dhw is dxw else gather(dhw, steps)
            grads["weight_hh"] = outer_sum(da, gather_previous(y, h0, steps, lengths, reverse))
    return grads


def steps_to_gather(lengths: Tensor, T: int) -> Tensor | None:
    """Indices [N] into T * B of the valid steps, or None if gathering them costs more than it saves."""
    if not has_values_on_cpu(lengths):
        return None
    steps = is_valid(lengths, T).flatten().nonzero().squeeze(1)
    return steps if len(steps) <= GATHER_UP_TO * T * len(lengths) else None


def gather(tensor: Tensor, steps: Tensor) -> Tensor:
    """Select steps: [T, B, N] to [len(steps), 1, N]."""
    return rows(tensor).index_select(0, steps)[:, None]


def gather_previous(y: Tensor, h0: Tensor, steps: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
    """h_{t-1} of each of these steps, [len(steps), 1, P]."""
    T, B = y.shape[:2]
    t, row = steps // B, steps % B
    starts = t == (lengths[row] - 1 if reverse else 0)
    h = gather(y, (steps + (B if reverse else -B)).clamp(0, T * B - 1))
    h[starts] = h0[row[starts], None]
    return h


def scatter(gathered: Tensor, steps: Tensor, T: int, B: int) -> Tensor:
    """Undo `gather`: [len(steps), 1, N] to [T, B, N], zero at the other steps."""
    N = gathered.shape[-1]
    return gathered.new_zeros(T * B, N).index_copy_(0, steps, gathered.squeeze(1)).view(T, B, N)


def weight_ih_gradient(dxw: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Sum over t of da_tᵀ x_t, [4H, I]."""
    if lengths is not None:  # padding may be NaN, and 0 * NaN is NaN
        x = torch.where(is_valid(lengths, x.shape[0]), x, torch.zeros_like(x))
    return outer_sum(dxw, x)


def weight_hh_gradient(dhw: Tensor, y: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Sum over t of d(W_hh h_{t-1})ᵀ h_{t-1}, [4H, P]."""
    if lengths is not None and reverse:
        return outer_sum(dhw, previous(y, h0, lengths, reverse))
    # The first step is added separately, which avoids a shifted copy of y.
    first, later, earlier = (dhw[-1:], dhw[:-1], y[1:]) if reverse else (dhw[:1], dhw[1:], y[:-1])
    return add_product(outer_sum(later, earlier), rows(first).T, h0[: first.shape[0] * h0.shape[0]])


def recurrent_products(
    y: Tensor, h0: Tensor, weight_hh: Tensor, lengths: Tensor | None, reverse: bool
) -> Tensor:
    """Recompute W_hh h_{t-1} of every step, [T, B, 4H], in the accumulation dtype."""
    wide = accumulation_dtype(y.dtype)
    return product(previous(y, h0, lengths, reverse).to(wide), weight_hh.to(wide).T)


def gain_hh_gradient(dxw: Tensor, hw: Tensor) -> Tensor:
    """Sum over t and batch of da times the normalized product, [4H]."""
    return (dxw * normalized(hw)[0]).sum((0, 1)).to(dxw.dtype)


def weight_hr_gradient(
    dhw: Tensor, douts: OutputGradients, c: Tensor, gates: Tensor, inputs: Inputs
) -> Tensor:
    """Sum over t of dh_tᵀ (o_t * tanh(c_t)), [P, H]; dh_t is the gradient of W_hr (o_t * tanh(c_t))."""
    lengths, reverse = inputs.lengths, inputs.reverse
    h_mask, zoneout_h = inputs.variant.h_mask, inputs.variant.zoneout_h
    dh = dhw @ inputs.weight_hh  # gradient of h_{t-1} from step t, [T, B, P]
    dh = dh if h_mask is None else dh * h_mask
    dh_n = dh.new_zeros(dh.shape[1:]) if douts.dh_n is None else douts.dh_n
    dh = previous(dh, dh_n, lengths, not reverse)
    dh = dh if douts.dy is None else dh + douts.dy
    if lengths is not None:
        dh = torch.where(is_valid(lengths, dh.shape[0]), dh, torch.zeros_like(dh))
    if zoneout_h is not None:
        steps = list(dh.unbind())
        for before, t in reversed(list(pairwise(time_steps(len(dh), reverse)))):
            steps[before] = steps[before] + zoneout_h[t] * steps[t]
        dh = (1 - zoneout_h) * (torch.stack(steps) if steps else dh)
    o = gates.chunk(4, dim=-1)[3]
    return outer_sum(dh, (o * torch.tanh(c)).to(dh.dtype))
