"""Masks of recurrent dropout and zoneout, drawn with PyTorch's generator before the recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor

Masks = tuple[Tensor | None, Tensor | None, Tensor | None]  # h_mask [B, P], zoneout_h [T, B, P], _c [T, B, H]


def draw(
    x: Tensor,  # [T, B, I]
    P: int,
    H: int,
    recurrent_dropout: float,
    zoneout_h: float,
    zoneout_c: float,
    training: bool,
) -> Masks:
    """The masks of one layer in one direction; in eval mode their expected values."""
    h_mask = None
    if training and recurrent_dropout > 0:
        h_mask = F.dropout(torch.ones(x.shape[1], P, dtype=x.dtype, device=x.device), recurrent_dropout)
    return h_mask, zoneout(x, P, zoneout_h, training), zoneout(x, H, zoneout_c, training)


def zoneout(x: Tensor, width: int, probability: float, training: bool) -> Tensor | None:
    """The share of the old state that each step keeps, [T, B, width]; None without zoneout."""
    if probability == 0:
        return None
    # Not x.new_full: under vmap it makes one mask per sample, which randomness="same" cannot share.
    row = torch.full((width,), probability, dtype=x.dtype, device=x.device)
    steps = row.expand(*x.shape[:2], width)  # one row in memory, not T * B
    return torch.bernoulli(steps) if training else steps
