"""The step kernels: one launch per time step, for every size and dtype."""

import triton
import triton.language as tl
from lstm_fused.kernels.cell import (
    add_product,
    cell_backward,
    cell_forward,
    gate_rows,
    load_gates,
    load_inputs,
    load_peephole,
    offsets,
    save_step,
    store_gates,
    valid_rows,
)


@triton.jit(do_not_specialize=["t", "B"])
def lstm_forward_step_kernel(
    xw,  # [T, B, 4H], accumulation dtype
    weight_hh,  # [4H, P]
    bias,  # [4H] or None
    peephole,  # [3H] or None
    lengths,  # [B] or None
    h_prev,  # [B, P]
    h_next,  # [B, H]; with a projection o * tanh(c), zero past the lengths
    c_state,  # [B, H], read and written
    y,  # [T, B, H], None with a projection
    c_all,  # [T, B, H] or None
    gates_all,  # [T, B, 4H] or None
    t,
    B,
    H: tl.constexpr,
    P: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """h, c and the gates of step t; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = xw.dtype.element_ty
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, mask = (rows < B)[:, None], (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    w_rows, w_mask = gate_rows(tl.program_id(1) * BH, H, BH)

    product = tl.zeros((BB, 4 * BH), WIDE)
    for k in range(0, P, BK):
        ks = k + tl.arange(0, BK)
        h = tl.load(h_prev + offsets(0, rows, ks, B, P), row_mask & (ks < P)[None, :], other=0)
        w = tl.load(
            weight_hh + w_rows[None, :] * P + ks[:, None], w_mask[None, :] & (ks < P)[:, None], other=0
        )
        product = tl.dot(h, w, product, input_precision=PRECISION, out_dtype=WIDE)

    a = add_product(load_inputs(xw, bias, t, rows, cols, mask, B, H), product, BB, BH)
    c_prev = tl.load(c_state + state, mask, other=0)
    p = load_peephole(peephole, cols, H, WIDE)
    h, c, gates = cell_forward(a, c_prev, p, peephole is not None)

    valid = valid_rows(lengths, rows, t, B)
    c = tl.where(valid, c, c_prev)
    tl.store(c_state + state, c, mask)
    save_step(h, c, gates, valid, y, c_all, gates_all, t, rows, cols, mask, B, H)
    h = h.to(h_next.dtype.element_ty)
    if y is None:
        h = tl.where(valid, h, 0)
    elif lengths is not None:
        h = tl.where(valid, h, tl.load(h_prev + state, mask, other=0))
    tl.store(h_next + state, h, mask)


@triton.jit(do_not_specialize=["t", "t_after", "t_before", "B"])
def lstm_backward_step_kernel(
    dy,  # [T, B, H] or None; None with a projection
    left,  # dxw [T, B, 4H]; with a projection the whole gradient of h_t, [B, P]
    weight,  # weight_hh [4H, H]; with a projection weight_hr [P, H]
    dh_state,  # [B, H], read and written; None with a projection
    dc_state,  # [B, H], read and written
    c_all,  # [T, B, H]
    c0,  # [B, H]
    gates_all,  # [T, B, 4H]
    peephole,  # [3H] or None
    lengths,  # [B] or None
    dxw,  # [T, B, 4H]
    t,  # or -1: past the last step, only dh is wanted
    t_after,  # the step the forward pass took after t, or -1: none
    t_before,  # the step it took before t, or -1: none
    B,
    H: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """Da of step t and the gradient of the c before it; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = c_all.dtype.element_ty
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, col_mask = (rows < B)[:, None], (cols < H)[None, :]
    mask = row_mask & col_mask
    state = offsets(0, rows, cols, B, H)

    dh = tl.zeros((BB, BH), WIDE)
    if t_after >= 0 or dh_state is None:
        for k in range(0, K, BK):
            ks = k + tl.arange(0, BK)
            at = offsets(0 if dh_state is None else t_after, rows, ks, B, K)
            da = tl.load(left + at, row_mask & (ks < K)[None, :], other=0)
            w = tl.load(weight + ks[:, None] * H + cols[None, :], (ks < K)[:, None] & col_mask, other=0)
            dh = tl.dot(da, w, dh, input_precision=PRECISION, out_dtype=WIDE)
    if dh_state is not None:
        after = valid_rows(lengths, rows, t_after, B) & (t_after >= 0)
        dh = tl.where(after, dh, tl.load(dh_state + state, mask, other=0))
        tl.store(dh_state + state, dh, mask)

    if t >= 0:
        at = offsets(t, rows, cols, B, H)
        if dy is not None:
            dh += tl.load(dy + at, mask, other=0)
        dc = tl.load(dc_state + state, mask, other=0)
        c = tl.load(c_all + at, mask, other=0)
        if t_before >= 0:
            c_prev = tl.load(c_all + offsets(t_before, rows, cols, B, H), mask, other=0)
        else:
            c_prev = tl.load(c0 + state, mask, other=0).to(WIDE)
        gates = load_gates(gates_all + offsets(t, rows, cols, B, 4 * H), mask, H, WIDE)
        p = load_peephole(peephole, cols, H, WIDE)
        da, dc_prev = cell_backward(dh, dc, gates, c, c_prev, p, peephole is not None)
        valid = valid_rows(lengths, rows, t, B)
        tl.store(dc_state + state, tl.where(valid, dc_prev, dc), mask)
        store_gates(dxw + offsets(t, rows, cols, B, 4 * H), da, valid, mask, H)


@triton.jit(do_not_specialize=["t", "B"])
def lstm_product_step_kernel(
    left,  # [B, K]
    right,  # [K, N], at the strides given
    state,  # [B, N], read and written
    addend,  # [B, N] or None
    out,  # [B, N] or None
    lengths,  # [B] or None
    t,  # the step that left belongs to, or -1: there is none
    B,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE_K: tl.constexpr,
    STRIDE_N: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """What a projection adds to each step: state = left right; past the lengths it stays as it was.

    Out is state + addend, or zero past the lengths unless KEEP.
    """
    WIDE: tl.constexpr = tl.float64 if left.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, col_mask = (rows < B)[:, None], (cols < N)[None, :]
    mask = row_mask & col_mask
    at = offsets(0, rows, cols, B, N)

    value = tl.zeros((BB, BH), WIDE)
    if t >= 0:
        for k in range(0, K, BK):
            ks = k + tl.arange(0, BK)
            a = tl.load(left + offsets(0, rows, ks, B, K), row_mask & (ks < K)[None, :], other=0)
            b = tl.load(
                right + ks[:, None] * STRIDE_K + cols[None, :] * STRIDE_N,
                (ks < K)[:, None] & col_mask,
                other=0,
            )
            value = tl.dot(a, b, value, input_precision=PRECISION, out_dtype=WIDE)
    valid = valid_rows(lengths, rows, t, B) & (t >= 0)
    value = tl.where(valid, value, tl.load(state + at, mask, other=0).to(WIDE))
    tl.store(state + at, value.to(state.dtype.element_ty), mask)
    if out is not None:
        if addend is not None:
            value += tl.load(addend + at, mask, other=0)
        if not KEEP:
            value = tl.where(valid, value, 0)
        tl.store(out + at, value.to(out.dtype.element_ty), mask)
