"""The sequence as one launch of a step kernel per time step."""

from lstm_fused.kernels.choose import Plan
from lstm_fused.kernels.replay import replay
from lstm_fused.kernels.step import (
    lstm_backward_step_kernel,
    lstm_forward_step_kernel,
    lstm_product_step_kernel,
)
from torch import Tensor

from lstm_fused.reference import time_steps


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
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    (T, B, P), H = y.shape, c0.shape[1]
    h, h_next = h0.clone(), h0.new_empty(B, H)
    c_state = c0.to(xw.dtype, copy=True)

    def run() -> None:
        h_in, h_out = h, h_next
        for t in time_steps(T, reverse):
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
            )
            if weight_hr is None:
                h_in, h_out = h_out, h_in
            else:
                product(plan, h_next, weight_hr.T, h, None, y[t], lengths, t, keep=False)

    replay(
        run, plan, xw, weight_hh, bias, peephole, weight_hr, lengths, h, h_next, c_state, y, c, gates, reverse
    )
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
) -> tuple[Tensor, Tensor]:
    """Fill dxw; dh0 and dc0."""
    (T, B, H), P = c.shape, weight_hh.shape[1]
    dh = c.new_zeros(B, P) if dh_n is None else dh_n.to(c.dtype, copy=True)
    dc = c.new_zeros(B, H) if dc_n is None else dc_n.to(c.dtype, copy=True)
    dh_t = None if weight_hr is None else gates.new_empty(B, P)

    def run() -> None:
        order = [-1, *time_steps(T, reverse), -1]
        for s in range(T, -1, -1):
            t_before, t, t_after = (order[s - 1] if s else -1), order[s], order[s + 1]
            if dh_t is not None:
                addend = None if dy is None or t < 0 else dy[t]
                product(plan, dxw[t_after], weight_hh, dh, addend, dh_t, lengths, t_after, keep=True)
                if t < 0:
                    break
            lstm_backward_step_kernel[plan.grid(B, H)](
                dy if weight_hr is None else None,
                dxw if dh_t is None else dh_t,
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
            )

    replay(run, plan, dy, weight_hh, weight_hr, dh, dc, dh_t, c, c0, gates, peephole, lengths, dxw, reverse)
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
    keep: bool,
) -> None:
    """The part of a step that a projection adds; see its kernel."""
    (B, K), N = left.shape, right.shape[1]
    lstm_product_step_kernel[plan.grid(B, N)](
        left, right, state, addend, out, lengths, t, B, N, K, *right.stride(), keep, **plan.options
    )
