"""The sequence as one launch of a step kernel per time step."""

from functools import cache
from typing import Any

import torch
import triton.language as tl
from lstm_fused.kernels.plan import Plan
from lstm_fused.kernels.product import (
    lstm_gradient_step_kernel,
    lstm_product_kernel,
    lstm_projection_step_kernel,
    lstm_recurrent_step_kernel,
)
from lstm_fused.kernels.replay import Launch, Steps, run
from lstm_fused.kernels.step import lstm_backward_step_kernel, lstm_forward_step_kernel
from lstm_fused.kernels.variant import lstm_norm_step_kernel
from torch import Tensor

from lstm_fused.reference import Variant


def forward(
    plan: Plan,
    xw: Tensor,  # [T, B, 4H]
    weight_hh: Tensor,  # [4H, P]
    bias: Tensor | None,  # [4H]
    peephole: Tensor | None,  # [3H]
    weight_hr: Tensor | None,  # [P, H]
    h0: Tensor,  # [B, P]
    c0: Tensor,  # [B, H]
    lengths: Tensor | None,  # [B]
    y: Tensor,  # [T, B, P]
    c: Tensor | None,  # [T, B, H]
    gates: Tensor | None,  # [T, B, 4H]
    reverse: bool,
    variant: Variant,
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    (T, B, P), H = y.shape, c0.shape[1]
    h, h_next = h0.clone(), h0.new_empty(B, H)
    c_state = c0.to(xw.dtype, copy=True)
    gain_hh, h_mask, zoneout_h, zoneout_c, clip, shared = dense_variant(variant)
    hw = None if gain_hh is None else xw.new_empty(B, 4 * H)
    tensors = (
        *(xw, weight_hh, bias, peephole, lengths, h, h_next, c_state, y, c, gates),
        *(hw, gain_hh, h_mask, zoneout_h, zoneout_c, weight_hr),
    )
    sizes = {"B": B, "H": H, "P": P} | of_tensors(tensors)
    of_cell = sizes | plan.options | {"CLIP": clip, "SHARED": shared}
    if hw is None and weight_hr is None:
        of_cell |= dependent_launch(h0.device)
    launches = [Launch(lstm_forward_step_kernel, plan.grid(B, H), items(of_cell))]
    if hw is not None:
        of_product = items(sizes | plan.options)
        launches.insert(0, Launch(lstm_recurrent_step_kernel, plan.grid(B, 4 * H), of_product))
    if weight_hr is not None:
        of_product = items(sizes | plan.options | {"SHARED": shared})
        launches.append(Launch(lstm_projection_step_kernel, plan.grid(B, P), of_product))
    first, stride = (T - 1, -1) if reverse else (0, 1)
    run(Steps(tuple(launches), T, T, first, stride), tensors, h0.device)
    return (h_next if weight_hr is None and T % 2 else h), c_state.to(c0.dtype)


def backward(
    plan: Plan,
    dy: Tensor | None,  # [T, B, P]
    dh_n: Tensor | None,  # [B, P]
    dc_n: Tensor | None,  # [B, H]
    c: Tensor,  # [T, B, H]
    gates: Tensor,  # [T, B, 4H]
    c0: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, P]
    peephole: Tensor | None,  # [3H]
    weight_hr: Tensor | None,  # [P, H]
    lengths: Tensor | None,  # [B]
    dxw: Tensor,  # [T, B, 4H]
    reverse: bool,
    variant: Variant,
    hw: Tensor | None,  # [T, B, 4H], accumulation dtype
    dhw: Tensor,  # [T, B, 4H], with layer norm
) -> tuple[Tensor, Tensor]:
    """Fill dxw, and dhw with layer norm; dh0 and dc0."""
    (T, B, H), P = c.shape, weight_hh.shape[1]
    dh = c.new_zeros(B, P) if dh_n is None else dh_n.to(c.dtype, copy=True)
    dc = c.new_zeros(B, H) if dc_n is None else dc_n.to(c.dtype, copy=True)
    dh_t = None if weight_hr is None else gates.new_empty(B, P)
    gain_hh, h_mask, zoneout_h, zoneout_c, clip, shared = dense_variant(variant)
    kept = None if zoneout_h is None else c.new_zeros(B, P)
    tensors = (
        *(dy, dxw if hw is None else dhw, weight_hh, dh, dc, c, c0, gates, peephole, lengths, dxw),
        *(h_mask, zoneout_h, kept, zoneout_c, weight_hr, dh_t, hw, gain_hh),
    )
    sizes = {"B": B, "H": H} | of_tensors(tensors)
    of_cell = sizes | {"P": P, "CLIP": clip, "SHARED": shared} | plan.options
    if hw is None and weight_hr is None:
        of_cell |= dependent_launch(c.device)
    launches = [Launch(lstm_backward_step_kernel, plan.grid(B, H), items(of_cell))]
    if weight_hr is not None:
        of_product = items(sizes | {"P": P, "SHARED": shared} | plan.options)
        launches.insert(0, Launch(lstm_gradient_step_kernel, plan.grid(B, P), of_product))
    if hw is not None:
        tiles = {"BB": plan.BB, "BK": plan.BK, "num_warps": plan.num_warps}
        launches.append(Launch(lstm_norm_step_kernel, plan.grid(B, H)[:1], items(sizes | tiles)))
    first, stride = (0, 1) if reverse else (T - 1, -1)
    # One launch more, for what the first step hands on to h0.
    run(Steps(tuple(launches), T + 1, T, first, stride), tensors, c.device)
    return dh.to(gates.dtype), dc.to(gates.dtype)


def of_tensors(tensors: tuple[Tensor | None, ...]) -> dict[str, Any]:
    """What kernels that read addresses must know of the tensors there."""
    kinds = tuple(None if tensor is None else getattr(tl, str(tensor.dtype)[6:]) for tensor in tensors)
    aligned = all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)
    return {"KINDS": kinds, "ALIGNED": aligned}


def items(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as what can be compared and kept."""
    return tuple(options.items())


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """How a launch may begin before the one before it has ended, where a card can do so."""
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


def dense_variant(variant: Variant) -> tuple[Any, ...]:
    """What kernels take of it: dense tensors, but of a zoneout that is the same everywhere one row."""
    gain_hh, h_mask, *zoneouts, clip = variant
    shared = all(z is None or z.stride()[:2] == (0, 0) for z in zoneouts)
    rows = (z[0, 0] if z is not None and shared else z for z in zoneouts)
    return *(None if t is None else t.contiguous() for t in (gain_hh, h_mask, *rows)), clip, shared
