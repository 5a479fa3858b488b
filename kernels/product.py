"""The products of a step that projections and layer norm add, each a launch of its own."""

import triton
import triton.language as tl
from lstm_fused.kernels.cell import add_dot, index, offsets, valid_rows
from lstm_fused.kernels.table import BACKWARD, FORWARD, double_buffered, pointer, time_of
from lstm_fused.kernels.variant import load_share, masked


@triton.jit(do_not_specialize=["B"])
def lstm_product_kernel(
    left,  # [B, K]
    right,  # [K, N], at the strides given
    state,  # [B, N]
    B,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE_K: tl.constexpr,
    STRIDE_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """State = left right; programs [batch tile, column tile]."""
    multiply(
        left, right, state, None, None, None, 0, 0, B, N, K, STRIDE_K, STRIDE_N, True, PRECISION, BB, BH, BK,
        None, None, None, None, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["node", "B"])
def lstm_recurrent_step_kernel(
    table, node, B, H: tl.constexpr, P: tl.constexpr, KINDS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """W_hh h_{t-1}, for the layer norm of the forward pass, of `ForwardTensors`."""
    step = tl.load(table) + node
    PROJECTED: tl.constexpr = KINDS[FORWARD.weight_hr] is not None
    multiply(
        pointer(table, FORWARD.h, KINDS, ALIGNED) if PROJECTED
        else double_buffered(table, step, FORWARD.h, KINDS, ALIGNED),
        pointer(table, FORWARD.weight_hh, KINDS, ALIGNED),
        pointer(table, FORWARD.hw, KINDS, ALIGNED), None, None, None, 0, 0, B, 4 * H, P, 1, P, True,
        PRECISION, BB, BH, BK,
        pointer(table, FORWARD.h_mask, KINDS, ALIGNED), None, None, None, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["node", "B"])
def lstm_projection_step_kernel(
    table, node, B, H: tl.constexpr, P: tl.constexpr, KINDS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    SHARED: tl.constexpr = False,
):  # fmt: skip
    """The h and y of a step through W_hr, of `ForwardTensors`."""
    t = time_of(table, tl.load(table) + node)
    multiply(
        pointer(table, FORWARD.h_next, KINDS, ALIGNED), pointer(table, FORWARD.weight_hr, KINDS, ALIGNED),
        pointer(table, FORWARD.h, KINDS, ALIGNED), None,
        pointer(table, FORWARD.y, KINDS, ALIGNED) + tl.cast(t, tl.int64) * B * P,
        pointer(table, FORWARD.lengths, KINDS, ALIGNED),
        t, t, B, P, H, 1, H, False, PRECISION, BB, BH, BK, None, None,
        pointer(table, FORWARD.zoneout_h, KINDS, ALIGNED), None, SHARED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["node", "B"])
def lstm_gradient_step_kernel(
    table, node, B, H: tl.constexpr, P: tl.constexpr, KINDS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    SHARED: tl.constexpr = False,
):  # fmt: skip
    """The gradient of the projected h, of `BackwardTensors`."""
    step = tl.load(table) + node
    t, t_after = time_of(table, step), time_of(table, step - 1)
    at, at_after = tl.cast(tl.maximum(t, 0), tl.int64), tl.cast(tl.maximum(t_after, 0), tl.int64)
    multiply(
        pointer(table, BACKWARD.dhw, KINDS, ALIGNED) + at_after * B * 4 * H,
        pointer(table, BACKWARD.weight_hh, KINDS, ALIGNED),
        pointer(table, BACKWARD.dh_state, KINDS, ALIGNED),
        pointer(table, BACKWARD.dy, KINDS, ALIGNED) + at * B * P if KINDS[BACKWARD.dy] is not None else None,
        pointer(table, BACKWARD.dh_t, KINDS, ALIGNED),
        pointer(table, BACKWARD.lengths, KINDS, ALIGNED),
        t_after, t, B, P, 4 * H, P, 1, True, PRECISION, BB, BH, BK, None,
        pointer(table, BACKWARD.h_mask, KINDS, ALIGNED),
        pointer(table, BACKWARD.zoneout_h, KINDS, ALIGNED),
        pointer(table, BACKWARD.kept, KINDS, ALIGNED), SHARED,
    )  # fmt: skip


@triton.jit
def multiply(
    left,  # [B, K]
    right,  # [K, N], at the strides given
    state,  # [B, N], read and written
    addend,  # [B, N] or None
    out,  # [B, N] or None
    lengths,  # [B] or None
    t,  # the step of left, or -1 if there is none
    t_zone,  # the step of addend, out and zoneout, or -1 if there is none
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
    left_mask,  # [B, K], a factor of left, or None
    mask,  # [B, N], a factor of the product, or None
    zoneout,  # [T, B, N], or SHARED [N], or None: forward of state, backward of out
    kept,  # [B, N] backward with zoneout: the gradient that skips the cell, read and written, or None
    SHARED: tl.constexpr,
):
    """In valid rows state = left @ right; out = state + addend; other rows of out are 0 unless KEEP."""
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
            value = add_dot(a, b, value, PRECISION)
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
            value += tl.load(addend + at, inside & (t_zone >= 0), other=0)
        if kept is not None:
            there = inside & (t_zone >= 0)
            share = load_share(zoneout, t_zone, rows, cols, there, B, N, SHARED, WIDE)
            tl.store(kept + at, share * value, there)
            value = (1 - share) * value
        if not KEEP:
            value = tl.where(valid, value, 0)
        tl.store(out + at, value.to(out.dtype.element_ty), inside)
