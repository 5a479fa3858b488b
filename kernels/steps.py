"""The sequence as one launch of a step kernel per time step."""

from typing import Any

from lstm_fused.kernels.choose import Plan
from lstm_fused.kernels.replay import replay
from lstm_fused.kernels.step import (
    lstm_backward_step_kernel,
    lstm_forward_step_kernel,
    lstm_product_step_kernel,
)
from lstm_fused.kernels.variant import lstm_norm_step_kernel
from torch import Tensor

from lstm_fused.reference import Variant, time_steps


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
    of_h: dict[str, Any] = {"zoneout": zoneout_h, "SHARED": shared}
    of_cell = {"hw": hw, "gain_hh": gain_hh, "h_mask": h_mask, "zoneout_c": zoneout_c}
    of_cell |= {"zoneout_h": zoneout_h if weight_hr is None else None, "CLIP": clip, "SHARED": shared}

    def run() -> None:
        h_in, h_out = h, h_next
        for t in time_steps(T, reverse):
            if hw is not None:
                product(plan, h_in, weight_hh.T, hw, None, None, None, 0, t, keep=True, left_mask=h_mask)
            lstm_forward_step_kernel[plan.grid(B, H)](
                xw,
                weight_hh,
                bias,
                peephole,
                lengths,
                h_in,
                h_out,
                c_state,
                y if weight_hr is None else None,
                c,
                gates,
                t,
                B,
                H,
                P,
                **plan.options,
                **of_cell,
            )
            if weight_hr is None:
                h_in, h_out = h_out, h_in
            else:
                product(plan, h_next, weight_hr.T, h, None, y[t], lengths, t, t, keep=False, **of_h)

    tensors = xw, weight_hh, bias, peephole, weight_hr, lengths, h, h_next, c_state, y, c, gates
    replay(run, plan, *tensors, reverse, gain_hh, h_mask, zoneout_h, zoneout_c, shared, clip, hw)
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
    of_cell = {"zoneout_c": zoneout_c, "CLIP": clip, "SHARED": shared}
    of_h: dict[str, Any] = {"mask": h_mask, "zoneout": zoneout_h, "kept": kept, "SHARED": shared}
    if weight_hr is None:
        of_cell |= {"h_mask": h_mask, "zoneout_h": zoneout_h, "kept": kept}
    handed_on = dxw if hw is None else dhw

    def run() -> None:
        order = [-1, *time_steps(T, reverse), -1]
        for s in range(T, -1, -1):
            t_before, t, t_after = (order[s - 1] if s else -1), order[s], order[s + 1]
            if dh_t is not None:
                addend = None if dy is None or t < 0 else dy[t]
                da = handed_on[t_after]
                product(plan, da, weight_hh, dh, addend, dh_t, lengths, t_after, t, keep=True, **of_h)
                if t < 0:
                    break
            lstm_backward_step_kernel[plan.grid(B, H)](
                dy if weight_hr is None else None,
                handed_on if dh_t is None else dh_t,
                weight_hh if weight_hr is None else weight_hr,
                dh if weight_hr is None else None,
                dc,
                c,
                c0,
                gates,
                peephole,
                lengths,
                dxw,
                t,
                t_after,
                t_before,
                B,
                H,
                4 * H if weight_hr is None else P,
                **plan.options,
                **of_cell,
            )
            if hw is not None and t >= 0:
                tiles = {"BB": plan.BB, "BK": plan.BK, "num_warps": plan.num_warps}
                lstm_norm_step_kernel[plan.grid(B, H)[:1]](dxw, hw, gain_hh, dhw, t, B, 4 * H, **tiles)

    tensors = dy, weight_hh, weight_hr, dh, dc, dh_t, c, c0, gates, peephole, lengths, dxw
    more = gain_hh, h_mask, zoneout_h, zoneout_c, shared, clip, kept, hw, dhw
    replay(run, plan, *tensors, reverse, *more)
    return dh.to(gates.dtype), dc.to(gates.dtype)


def product(
    plan: Plan,
    left: Tensor,  # [B, K]
    right: Tensor,  # [K, N]
    state: Tensor,  # [B, N]
    addend: Tensor | None,  # [B, N]
    out: Tensor | None,  # [B, N]
    lengths: Tensor | None,  # [B]
    t: int,
    t_zone: int,
    keep: bool,
    left_mask: Tensor | None = None,  # [B, K]
    mask: Tensor | None = None,  # [B, N]
    zoneout: Tensor | None = None,  # [T, B, N]; [N] if SHARED
    kept: Tensor | None = None,  # [B, N]
    SHARED: bool = False,
) -> None:
    """The part of a step that a projection or a layer norm adds; see its kernel."""
    (B, K), N = left.shape, right.shape[1]
    tensors = left, right, state, addend, out, lengths
    numbers = t, t_zone, B, N, K, *right.stride(), keep
    variant = {"left_mask": left_mask, "mask": mask, "zoneout": zoneout, "kept": kept, "SHARED": SHARED}
    lstm_product_step_kernel[plan.grid(B, N)](*tensors, *numbers, **plan.options, **variant)


def dense_variant(variant: Variant) -> tuple[Any, ...]:
    """What kernels take of it: dense tensors, but of a zoneout that is the same everywhere one row."""
    gain_hh, h_mask, *zoneouts, clip = variant
    shared = all(z is None or z.stride()[:2] == (0, 0) for z in zoneouts)
    rows = (z[0, 0] if z is not None and shared else z for z in zoneouts)
    return *(None if t is None else t.contiguous() for t in (gain_hh, h_mask, *rows)), clip, shared
