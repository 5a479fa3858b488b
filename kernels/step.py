"""The step kernels: one launch per time step, for every size and dtype."""

import triton
import triton.language as tl
from lstm_fused.kernels.cell import (
    add_product,
    cell_backward,
    cell_forward,
    clipped,
    gate_rows,
    index,
    load_gates,
    load_inputs,
    load_peephole,
    offsets,
    save_step,
    store_gates,
    valid_rows,
)
from lstm_fused.kernels.variant import add_normalized, load_share, masked


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
    hw=None,  # [B, 4H], W_hh h_{t-1} in the accumulation dtype, with layer norm
    gain_hh=None,  # [4H], with layer norm
    h_mask=None,  # [B, P] or None
    zoneout_h=None,  # [T, B, H], or SHARED [H], or None; None with a projection
    zoneout_c=None,  # [T, B, H], or SHARED [H], or None
    CLIP: tl.constexpr = None,
    SHARED: tl.constexpr = False,
):
    """h, c and the gates of step t; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = xw.dtype.element_ty
    EXACT: tl.constexpr = weight_hh.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, mask = (rows < B)[:, None], (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    w_rows, w_mask = gate_rows(tl.program_id(1) * BH, H, BH)

    if hw is None:
        product = tl.zeros((BB, 4 * BH), WIDE)
        for k in range(0, P, BK):
            ks = k + tl.arange(0, BK)
            h = tl.load(h_prev + offsets(0, rows, ks, B, P), row_mask & (ks < P)[None, :], other=0)
            if h_mask is not None:
                h = masked(h, h_mask, rows, ks, row_mask, B, P)
            w_at = weight_hh + index(w_rows, 4 * H * P)[None, :] * P + ks[:, None]
            w = tl.load(w_at, w_mask[None, :] & (ks < P)[:, None], other=0)
            product = tl.dot(h, w, product, input_precision=PRECISION, out_dtype=WIDE)
        a = add_product(load_inputs(xw, bias, t, rows, cols, mask, B, H), product, BB, BH)
    else:
        a = load_inputs(xw, bias, t, rows, cols, mask, B, H)
        a = add_normalized(a, hw, gain_hh, rows, cols, mask, B, H, BB, BK)
    c_prev = tl.load(c_state + state, mask, other=0)
    p = load_peephole(peephole, cols, H, WIDE)
    h, c, gates = cell_forward(a, c_prev, p, peephole is not None, CLIP, EXACT)
    if zoneout_h is not None:
        share = load_share(zoneout_h, t, rows, cols, mask, B, H, SHARED, WIDE)
        h = share * tl.load(h_prev + state, mask, other=0).to(WIDE) + (1 - share) * h
    if zoneout_c is not None:
        share = load_share(zoneout_c, t, rows, cols, mask, B, H, SHARED, WIDE)
        c = share * c_prev + (1 - share) * c

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
    left,  # dxw (with layer norm dhw) [T, B, 4H]; with a projection the whole gradient of W_hr (...), [B, P]
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
    h_mask=None,  # [B, H] or None; None with a projection, like the next two
    zoneout_h=None,  # [T, B, H], or SHARED [H], or None
    kept=None,  # [B, H] with zoneout_h: what it hands on from step to step, read and written
    zoneout_c=None,  # [T, B, H], or SHARED [H], or None
    CLIP: tl.constexpr = None,
    SHARED: tl.constexpr = False,
):
    """Da of step t and the gradient of the c before it; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = c_all.dtype.element_ty
    EXACT: tl.constexpr = weight.dtype.element_ty == tl.float32 and PRECISION == "ieee"
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
            w_at = weight + index(ks, K * H)[:, None] * H + cols[None, :]
            w = tl.load(w_at, (ks < K)[:, None] & col_mask, other=0)
            dh = tl.dot(da, w, dh, input_precision=PRECISION, out_dtype=WIDE)
    if h_mask is not None:
        dh *= tl.load(h_mask + state, mask, other=0).to(WIDE)
    if kept is not None:
        dh += tl.load(kept + state, mask, other=0)
    if dh_state is not None:
        after = valid_rows(lengths, rows, t_after, B) & (t_after >= 0)
        dh = tl.where(after, dh, tl.load(dh_state + state, mask, other=0))
        tl.store(dh_state + state, dh, mask)

    if t >= 0:
        at = offsets(t, rows, cols, B, H)
        if dy is not None:
            dh += tl.load(dy + at, mask, other=0)
        if kept is not None:
            share = load_share(zoneout_h, t, rows, cols, mask, B, H, SHARED, WIDE)
            tl.store(kept + state, share * dh, mask)
            dh = (1 - share) * dh
        dc = tl.load(dc_state + state, mask, other=0)
        c = tl.load(c_all + at, mask, other=0)
        if t_before >= 0:
            c_prev = tl.load(c_all + offsets(t_before, rows, cols, B, H), mask, other=0)
        else:
            c_prev = tl.load(c0 + state, mask, other=0).to(WIDE)
        gates = load_gates(gates_all + offsets(t, rows, cols, B, 4 * H), mask, H, WIDE)
        p = load_peephole(peephole, cols, H, WIDE)
        if zoneout_c is not None:
            share = load_share(zoneout_c, t, rows, cols, mask, B, H, SHARED, WIDE)
            i, f, g, _o = gates
            c = clipped(f * c_prev + i * g, CLIP)
            dc_here = (1 - share) * dc
            da, dc_prev = cell_backward(dh, dc_here, gates, c, c_prev, p, peephole is not None, CLIP, EXACT)
            dc_prev += share * dc
        else:
            da, dc_prev = cell_backward(dh, dc, gates, c, c_prev, p, peephole is not None, CLIP, EXACT)
        valid = valid_rows(lengths, rows, t, B)
        tl.store(dc_state + state, tl.where(valid, dc_prev, dc), mask)
        store_gates(dxw + offsets(t, rows, cols, B, 4 * H), da, valid, mask, H)


@triton.jit(do_not_specialize=["t", "t_zone", "B"])
def lstm_product_step_kernel(
    left,  # [B, K]
    right,  # [K, N], at the strides given
    state,  # [B, N], read and written
    addend,  # [B, N] or None
    out,  # [B, N] or None
    lengths,  # [B] or None
    t,  # the step that left belongs to, or -1: there is none
    t_zone,  # the step that zoneout belongs to, or -1: there is none
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
    left_mask=None,  # [B, K], what multiplies left, or None
    mask=None,  # [B, N], what multiplies the product, or None
    zoneout=None,  # [T, B, N], or SHARED [N], or None: forward of state, backward of out
    kept=None,  # [B, N] backward with zoneout: what it hands on from step to step, read and written
    SHARED: tl.constexpr = False,
):
    """What a projection or a layer norm adds to each step: state = left right; past the lengths it stays.

    Out is state + addend, or zero past the lengths unless KEEP.
    """
    WIDE: tl.constexpr = tl.float64 if left.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, col_mask = (rows < B)[:, None], (cols < N)[None, :]
    inside = row_mask & col_mask
    at = offsets(0, rows, cols, B, N)

    value = tl.zeros((BB, BH), WIDE)
    if t >= 0:
        for k in range(0, K, BK):
            ks = k + tl.arange(0, BK)
            a = tl.load(left + offsets(0, rows, ks, B, K), row_mask & (ks < K)[None, :], other=0)
            if left_mask is not None:
                a = masked(a, left_mask, rows, ks, row_mask, B, K)
            b_at = right + index(ks, K * N)[:, None] * STRIDE_K + index(cols, K * N)[None, :] * STRIDE_N
            b = tl.load(b_at, (ks < K)[:, None] & col_mask, other=0)
            value = tl.dot(a, b, value, input_precision=PRECISION, out_dtype=WIDE)
    before = tl.load(state + at, inside, other=0).to(WIDE)
    if mask is not None:
        value *= tl.load(mask + at, inside, other=0).to(WIDE)
    if kept is not None:
        value += tl.load(kept + at, inside, other=0)
    elif zoneout is not None:
        share = load_share(zoneout, t_zone, rows, cols, inside, B, N, SHARED, WIDE)
        value = share * before + (1 - share) * value
    valid = valid_rows(lengths, rows, t, B) & (t >= 0)
    value = tl.where(valid, value, before)
    tl.store(state + at, value.to(state.dtype.element_ty), inside)
    if out is not None:
        if addend is not None:
            value += tl.load(addend + at, inside, other=0)
        if kept is not None:
            there = inside & (t_zone >= 0)
            share = load_share(zoneout, t_zone, rows, cols, there, B, N, SHARED, WIDE)
            tl.store(kept + at, share * value, there)
            value = (1 - share) * value
        if not KEEP:
            value = tl.where(valid, value, 0)
        tl.store(out + at, value.to(out.dtype.element_ty), inside)
