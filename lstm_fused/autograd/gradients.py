"""The gradients of all inputs and weights, computed after the recurrence from what an engine returns."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused.autograd.operators import products
from lstm_fused.contract import (
    Factors,
    GivenFactors,
    Gradients,
    InputGradients,
    Inputs,
    OutputGradients,
    Spec,
)
from lstm_fused.reference import accumulation_dtype, is_valid, normalized, previous, time_steps


class Kept(NamedTuple):
    """Tensors that the gradients of the weights are computed from, besides the inputs."""

    y: Annotated[Tensor, Spec("T B P")]  # times h_mask, if given
    c: Annotated[Tensor, Spec("T B H")]
    gates: Annotated[Tensor, Spec("T B 4H")]
    hw: Annotated[Tensor | None, Spec("T B 4H")] = None  # W_hh h_{t-1}, with layer norm


def input_gradients(
    needed: Sequence[str],
    engine: str | None,
    douts: OutputGradients,
    inputs: Inputs,
    kept: Kept,
    engine_grads: Gradients,
) -> dict[str, Tensor]:
    """Compute the needed gradients after the recurrence, by name; others may be among them.

    Args:
        needed: the names of the inputs that need a gradient.
        engine: the engine whose sums over the batch cover exactly these rows, or None: recompute them.
        douts: gradients of the outputs.
        inputs: arguments of the forward pass, with h0 times h_mask.
        kept: results of the forward pass.
        engine_grads: results of the engine's backward pass.
    """
    lengths, reverse, variant = inputs.lengths, inputs.reverse, inputs.variant
    c, d_bias, d_peephole = kept.c, engine_grads.dbias, engine_grads.dpeephole
    if engine is None or variant.zoneout_c is not None:
        wide = c.to(accumulation_dtype(c.dtype))
        c_prev = previous(wide, inputs.c0.to(wide.dtype), lengths, reverse)
        c = reference.cell_before_zoneout(wide, c_prev, kept.gates, variant.zoneout_c, variant.cell_clip)
        if engine is None:
            d_bias, d_peephole = reference.vector_gradients(engine_grads.dxw, c, c_prev, inputs.peephole)
    grads = product_gradients(engine, needed, inputs, kept.y, engine_grads.dxw, engine_grads.dhw)
    grads |= {"bias_ih": d_bias, "bias_hh": d_bias, "peephole": d_peephole}
    grads |= {"h0": engine_grads.dh0, "c0": engine_grads.dc0}
    if "weight_hr" in needed:
        grads["weight_hr"] = weight_hr_gradient(engine, engine_grads.dhw, douts, c, kept.gates, inputs)
    if kept.hw is not None and "gain_hh" in needed:
        grads["gain_hh"] = gain_hh_gradient(engine_grads.dxw, kept.hw)
    return grads


def product_gradients(
    engine: str | None, needed: Sequence[str], inputs: Inputs, y: Tensor, dxw: Tensor, dhw: Tensor
) -> dict[str, Tensor]:
    """The needed ones of the gradients of x, W_ih and W_hh."""
    given = given_factors(needed, inputs, y)
    factors = Factors(dxw, None if dhw is dxw else dhw, *given, inputs.lengths, inputs.reverse)
    dx, dweight_ih, dweight_hh = products(engine, factors)
    # Without weight_ih, x is W_ih x.
    return {"x": dxw if inputs.weight_ih is None else dx, "weight_ih": dweight_ih, "weight_hh": dweight_hh}


def given_factors(needed: Sequence[str], inputs: Inputs, y: Tensor) -> GivenFactors:
    """The factors of the needed ones of the gradients of x, W_ih and W_hh, but for dxw."""
    return GivenFactors(
        inputs.x if "weight_ih" in needed else None,
        inputs.weight_ih if "x" in needed else None,
        y if "weight_hh" in needed else None,
        inputs.h0 if "weight_hh" in needed else None,
    )


def by_name(found: InputGradients) -> dict[str, Tensor]:
    """The gradients of one call by the names of their inputs."""
    dx, dweight_ih, dweight_hh, dh0, dc0, dbias, dpeephole = found
    grads = {"x": dx, "weight_ih": dweight_ih, "weight_hh": dweight_hh, "h0": dh0, "c0": dc0}
    return grads | {"bias_ih": dbias, "bias_hh": dbias, "peephole": dpeephole}


def recurrent_products(
    y: Tensor, h0: Tensor, weight_hh: Tensor, lengths: Tensor | None, reverse: bool
) -> Tensor:
    """Recompute W_hh h_{t-1} of every step, [T, B, 4H], in the accumulation dtype."""
    wide = accumulation_dtype(y.dtype)
    return previous(y, h0, lengths, reverse).to(wide) @ weight_hh.to(wide).T


def gain_hh_gradient(dxw: Tensor, hw: Tensor) -> Tensor:
    """Sum over t and batch of da times the normalized product, [4H]."""
    return (dxw * normalized(hw)[0]).sum((0, 1)).to(dxw.dtype)


def weight_hr_gradient(
    engine: str | None, dhw: Tensor, douts: OutputGradients, c: Tensor, gates: Tensor, inputs: Inputs
) -> Tensor:
    """Sum over t of dh_tᵀ (o_t * tanh(c_t)), [P, H]; dh_t is the gradient of W_hr (o_t * tanh(c_t))."""
    lengths, reverse = inputs.lengths, inputs.reverse
    h_mask, zoneout_h = inputs.variant.h_mask, inputs.variant.zoneout_h
    # Gradient of h_{t-1} from step t, [T, B, P].
    dh = products(engine, Factors(dhw, None, None, inputs.weight_hh, None, None, lengths, reverse)).dx
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
    m = (o * torch.tanh(c)).to(dh.dtype)
    return products(engine, Factors(dh, None, m, None, None, None, lengths, reverse)).dweight_ih
