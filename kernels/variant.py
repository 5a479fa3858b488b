"""Recurrent dropout, zoneout and layer norm for the step kernels, by `lstm_fused.reference`'s equations."""

import triton
import triton.language as tl
from lstm_fused.kernels.cell import load_gates, offsets, quotient, root
from lstm_fused.kernels.table import BACKWARD, pointer, time_of

EPS = tl.constexpr(1e-5)  # of lstm_fused.reference


@triton.jit
def masked(h, h_mask, rows, cols, row_mask, B, N: tl.constexpr):
    """Apply recurrent dropout to h."""
    WIDE: tl.constexpr = tl.float64 if h.dtype == tl.float64 else tl.float32
    mask = tl.load(h_mask + offsets(0, rows, cols, B, N), row_mask & (cols < N)[None, :], other=0)
    return (h.to(WIDE) * mask.to(WIDE)).to(h.dtype)


@triton.jit
def load_share(
    zoneout, t, rows, cols, mask, B, N: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The share of the old state that zoneout keeps at step t; SHARED: one row [N] for all of them."""
    at = offsets(0, rows * 0, cols, B, N) if SHARED else offsets(t, rows, cols, B, N)
    return tl.load(zoneout + at, mask, other=0).to(WIDE)


@triton.jit
def statistics(hw, rows, B, N: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr):
    """Mean and 1 / deviation of rows of hw [B, N], each [BB, 1]."""
    WIDE: tl.constexpr = hw.dtype.element_ty
    total = tl.zeros((BB, BK), WIDE)
    for n in range(0, N, BK):
        cols = n + tl.arange(0, BK)
        mask = (rows < B)[:, None] & (cols < N)[None, :]
        total += tl.load(hw + offsets(0, rows, cols, B, N), mask, other=0)
    mean = quotient(tl.sum(total, 1)[:, None], N)
    total = tl.zeros((BB, BK), WIDE)
    for n in range(0, N, BK):
        cols = n + tl.arange(0, BK)
        mask = (rows < B)[:, None] & (cols < N)[None, :]
        centred = tl.where(mask, tl.load(hw + offsets(0, rows, cols, B, N), mask, other=0) - mean, 0)
        total += centred * centred
    return mean, quotient(1, root(quotient(tl.sum(total, 1)[:, None], N) + EPS))


@triton.jit
def add_normalized(
    a, hw, gain, rows, cols, mask, B, H: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Add the layer norm of hw = W_hh h_{t-1}, [B, 4H], to the gates' tiles."""
    WIDE: tl.constexpr = hw.dtype.element_ty
    mean, rstd = statistics(hw, rows, B, 4 * H, BB, BK)
    a_i, a_f, a_g, a_o = a
    i, f, g, o = load_gates(hw + offsets(0, rows, cols, B, 4 * H), mask, H, WIDE)
    g_i, g_f, g_g, g_o = load_gates((gain + cols)[None, :], (cols < H)[None, :], H, WIDE)
    a_i += g_i * ((i - mean) * rstd)
    a_f += g_f * ((f - mean) * rstd)
    a_g += g_g * ((g - mean) * rstd)
    a_o += g_o * ((o - mean) * rstd)
    return a_i, a_f, a_g, a_o


@triton.jit(do_not_specialize=["node", "B"])
def lstm_norm_step_kernel(
    table, node, B, H: tl.constexpr, KINDS: tl.constexpr, ALIGNED: tl.constexpr, BB: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Backward layer norm of a step, from da to dhw of `BackwardTensors`; programs [batch tile]."""
    N: tl.constexpr = 4 * H
    WIDE: tl.constexpr = KINDS[BACKWARD.hw]
    t = time_of(table, tl.load(table) + node)
    if t >= 0:
        rows = tl.program_id(0) * BB + tl.arange(0, BB)
        start = tl.cast(t, tl.int64) * B * N
        dxw = pointer(table, BACKWARD.dxw, KINDS, ALIGNED) + start  # [B, N]
        hw = pointer(table, BACKWARD.hw, KINDS, ALIGNED) + start  # [B, N]
        gain = pointer(table, BACKWARD.gain_hh, KINDS, ALIGNED)  # [N]
        dhw = pointer(table, BACKWARD.dhw, KINDS, ALIGNED) + start  # [B, N]
        mean, rstd = statistics(hw, rows, B, N, BB, BK)
        total = tl.zeros((BB, BK), WIDE)
        along = tl.zeros((BB, BK), WIDE)
        for n in range(0, N, BK):
            d, normal = scaled(dxw, hw, gain, mean, rstd, rows, n + tl.arange(0, BK), B, N)
            total += d
            along += d * normal
        total_mean = quotient(tl.sum(total, 1)[:, None], N)
        along_mean = quotient(tl.sum(along, 1)[:, None], N)
        for n in range(0, N, BK):
            cols = n + tl.arange(0, BK)
            d, normal = scaled(dxw, hw, gain, mean, rstd, rows, cols, B, N)
            d = rstd * (d - total_mean - normal * along_mean)
            mask = (rows < B)[:, None] & (cols < N)[None, :]
            tl.store(dhw + offsets(0, rows, cols, B, N), d.to(dhw.dtype.element_ty), mask)


@triton.jit
def scaled(dxw, hw, gain, mean, rstd, rows, cols, B, N: tl.constexpr):
    """The gradient of the normalized numbers, and these numbers; zero outside the tensor."""
    WIDE: tl.constexpr = hw.dtype.element_ty
    mask = (rows < B)[:, None] & (cols < N)[None, :]
    at = offsets(0, rows, cols, B, N)
    d = tl.load(dxw + at, mask, other=0).to(WIDE) * tl.load(gain + cols, cols < N, other=0).to(WIDE)[None, :]
    return d, (tl.load(hw + at, mask, other=0) - mean) * rstd
