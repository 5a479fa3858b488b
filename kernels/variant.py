"""What the step kernels do beyond the textbook, by the equations of `lstm_fused.reference`."""

import triton
import triton.language as tl
from lstm_fused.kernels.cell import load_gates, offsets, quotient, root

EPS = tl.constexpr(1e-5)  # of lstm_fused.reference


@triton.jit
def masked(h, h_mask, rows, cols, row_mask, B, N: tl.constexpr):
    """What h's product with W_hh takes of it: all but what recurrent dropout hides."""
    WIDE: tl.constexpr = tl.float64 if h.dtype == tl.float64 else tl.float32
    mask = tl.load(h_mask + offsets(0, rows, cols, B, N), row_mask & (cols < N)[None, :], other=0)
    return (h.to(WIDE) * mask.to(WIDE)).to(h.dtype)


@triton.jit
def load_share(
    zoneout, t, rows, cols, mask, B, N: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The share of the old state that step t keeps; SHARED: the same row [N] for all steps and sequences."""
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
    """Add the layer norm of W_hh h_{t-1}, which is hw [B, 4H], to four tiles."""
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


@triton.jit(do_not_specialize=["t", "B"])
def lstm_norm_step_kernel(
    dxw,  # [T, B, N], N = 4H
    hw,  # [T, B, N], accumulation dtype
    gain,  # [N]
    dhw,  # [T, B, N]
    t,
    B,
    N: tl.constexpr,
    BB: tl.constexpr,
    BK: tl.constexpr,
):
    """Da of step t through the layer norm: the gradient of W_hh h_{t-1}; programs [batch tile]."""
    WIDE: tl.constexpr = hw.dtype.element_ty
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    start = tl.cast(t, tl.int64) * B * N
    mean, rstd = statistics(hw + start, rows, B, N, BB, BK)
    total = tl.zeros((BB, BK), WIDE)
    along = tl.zeros((BB, BK), WIDE)
    for n in range(0, N, BK):
        d, normal = scaled(dxw + start, hw + start, gain, mean, rstd, rows, n + tl.arange(0, BK), B, N)
        total += d
        along += d * normal
    total_mean = quotient(tl.sum(total, 1)[:, None], N)
    along_mean = quotient(tl.sum(along, 1)[:, None], N)
    for n in range(0, N, BK):
        cols = n + tl.arange(0, BK)
        d, normal = scaled(dxw + start, hw + start, gain, mean, rstd, rows, cols, B, N)
        d = rstd * (d - total_mean - normal * along_mean)
        mask = (rows < B)[:, None] & (cols < N)[None, :]
        tl.store(dhw + offsets(t, rows, cols, B, N), d.to(dhw.dtype.element_ty), mask)


@triton.jit
def scaled(dxw, hw, gain, mean, rstd, rows, cols, B, N: tl.constexpr):
    """The gradient of the normalized numbers, and these numbers; zero where there are none."""
    WIDE: tl.constexpr = hw.dtype.element_ty
    mask = (rows < B)[:, None] & (cols < N)[None, :]
    at = offsets(0, rows, cols, B, N)
    d = tl.load(dxw + at, mask, other=0).to(WIDE) * tl.load(gain + cols, cols < N, other=0).to(WIDE)[None, :]
    return d, (tl.load(hw + at, mask, other=0) - mean) * rstd
