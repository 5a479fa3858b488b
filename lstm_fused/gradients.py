"""The gradients every engine shares: formed once, after the recurrence, from ``dxw``."""

from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from lstm_fused.products import add_product, outer_sum, product, rows
from lstm_fused.reference import accumulation_dtype, is_valid, normalized, previous, time_steps
from lstm_fused.tracing import has_values_on_cpu

Item = TypeVar("Item")
# Where no more than this share of all steps lies within their sequences, the products leave out the others.
# Measured: at a half 1.1 to 1.5 times as fast a training step, at three quarters 1.0 or a little more.
GATHERED = 0.7


class PerInput(NamedTuple, Generic[Item]):
    """Something for each differentiable input of a layer, in the operators' order."""

    x: Item
    weight_ih: Item
    weight_hh: Item
    bias: Item
    peephole: Item
    weight_hr: Item
    h0: Item
    c0: Item
    gain_hh: Item


def product_gradients(
    needs: PerInput[bool],
    dxw: Tensor,
    dhw: Tensor,
    x: Tensor,
    weight_ih: Tensor | None,
    y: Tensor,
    h0: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, W_ih and W_hh where needed: each is one product over all steps of all rows."""
    dx = d_weight_ih = d_weight_hh = None
    steps = None if lengths is None else steps_to_gather(lengths, x.shape[0])
    if lengths is None or steps is None:
        if needs.x:
            dx = dxw if weight_ih is None else product(dxw, weight_ih)
        if needs.weight_ih:
            d_weight_ih = weight_ih_gradient(dxw, x, lengths)
        if needs.weight_hh:
            d_weight_hh = weight_hh_gradient(dhw, y, h0, lengths, reverse)
    else:
        da = gather(dxw, steps)
        if needs.x:
            dx = dxw if weight_ih is None else spread(product(da, weight_ih), steps, *y.shape[:2])
        if needs.weight_ih:
            d_weight_ih = outer_sum(da, gather(x, steps))
        if needs.weight_hh:
            da = da if dhw is dxw else gather(dhw, steps)
            d_weight_hh = outer_sum(da, gather_previous(y, h0, steps, lengths, reverse))
    return dx, d_weight_ih, d_weight_hh


def steps_to_gather(lengths: Tensor, T: int) -> Tensor | None:
    """The steps within their sequences, [N] of T * B; None where to gather them costs more than it saves."""
    if not has_values_on_cpu(lengths):
        return None
    steps = is_valid(lengths, T).flatten().nonzero().squeeze(1)
    return steps if len(steps) <= GATHERED * T * len(lengths) else None


def gather(tensor: Tensor, steps: Tensor) -> Tensor:
    """Some of the steps of all rows: of [T, B, N] as many of a batch of one."""
    return rows(tensor).index_select(0, steps)[:, None]


def gather_previous(y: Tensor, h0: Tensor, steps: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
    """The h that each of these steps starts from."""
    T, B = y.shape[:2]
    t, row = steps // B, steps % B
    starts = t == (lengths[row] - 1 if reverse else 0)
    h = gather(y, (steps + (B if reverse else -B)).clamp(0, T * B - 1))
    h[starts] = h0[row[starts], None]
    return h


def spread(gathered: Tensor, steps: Tensor, T: int, B: int) -> Tensor:
    """Back to where they were gathered, between zeros."""
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
    # Without a shifted copy of y: the first step is added apart.
    first, later, earlier = (dhw[-1:], dhw[:-1], y[1:]) if reverse else (dhw[:1], dhw[1:], y[:-1])
    return add_product(outer_sum(later, earlier), rows(first).T, h0[: first.shape[0] * h0.shape[0]])


def recurrent_products(
    y: Tensor, h0: Tensor, weight_hh: Tensor, lengths: Tensor | None, reverse: bool
) -> Tensor:
    """W_hh h_{t-1} of every step once more, [T, B, 4H], in the accumulation dtype."""
    wide = accumulation_dtype(y.dtype)
    return product(previous(y, h0, lengths, reverse).to(wide), weight_hh.to(wide).T)


def gain_hh_gradient(dxw: Tensor, hw: Tensor) -> Tensor:
    """Sum over t and batch of da times what the gain multiplies, [4H]."""
    return (dxw * normalized(hw)[0]).sum((0, 1)).to(dxw.dtype)


def weight_hr_gradient(
    dhw: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    c: Tensor,
    gates: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    h_mask: Tensor | None,
    zoneout_h: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Sum over t of dh_tᵀ (o_t * tanh(c_t)), [P, H], where dh_t is the whole gradient of W_hr (...)."""
    dh = dhw @ weight_hh  # what step t hands back to the h it started from, [T, B, P]
    dh = dh if h_mask is None else dh * h_mask
    dh = previous(dh, dh.new_zeros(dh.shape[1:]) if dh_n is None else dh_n, lengths, not reverse)
    dh = dh if dy is None else dh + dy
    if lengths is not None:
        dh = torch.where(is_valid(lengths, dh.shape[0]), dh, torch.zeros_like(dh))
    if zoneout_h is not None:
        steps = list(dh.unbind())
        for before, t in reversed(list(pairwise(time_steps(len(dh), reverse)))):
            steps[before] = steps[before] + zoneout_h[t] * steps[t]
        dh = (1 - zoneout_h) * (torch.stack(steps) if steps else dh)
    o = gates.chunk(4, dim=-1)[3]
    return outer_sum(dh, (o * torch.tanh(c)).to(dh.dtype))
