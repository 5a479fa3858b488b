"""The gradients every engine shares: formed once, after the recurrence, from ``dxw``."""

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from lstm_fused.products import outer_sum
from lstm_fused.reference import is_valid, previous

Item = TypeVar("Item")


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


def weight_ih_gradient(dxw: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Sum over t of da_tᵀ x_t, [4H, I]."""
    if lengths is not None:  # padding may be NaN, and 0 * NaN is NaN
        x = torch.where(is_valid(lengths, len(x)), x, torch.zeros_like(x))
    return outer_sum(dxw, x)


def weight_hh_gradient(dxw: Tensor, y: Tensor, h0: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Sum over t of da_tᵀ h_{t-1}, [4H, P]."""
    if lengths is not None and reverse:
        return outer_sum(dxw, previous(y, h0, lengths, reverse))
    # Without a shifted copy of y: the first step is added apart.
    first, later, earlier = (dxw[-1:], dxw[:-1], y[1:]) if reverse else (dxw[:1], dxw[1:], y[:-1])
    return torch.addmm(outer_sum(later, earlier), first.flatten(0, 1).T, h0[: len(first) * len(h0)])


def weight_hr_gradient(
    dxw: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    c: Tensor,
    gates: Tensor,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Sum over t of dh_tᵀ (o_t * tanh(c_t)), [P, H], where dh_t is the whole gradient of h_t."""
    dh = dxw @ weight_hh  # what step t hands back to the h it started from, [T, B, P]
    dh = previous(dh, dh.new_zeros(dh.shape[1:]) if dh_n is None else dh_n, lengths, not reverse)
    dh = dh if dy is None else dh + dy
    if lengths is not None:
        dh = torch.where(is_valid(lengths, len(dh)), dh, torch.zeros_like(dh))
    o = gates.chunk(4, dim=-1)[3]
    return outer_sum(dh, (o * torch.tanh(c)).to(dh.dtype))
