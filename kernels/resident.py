"""The resident kernels: a program owns 16 batch rows and all of H for the whole sequence.

The recurrent weights stay in shared memory and h in registers, so no program waits for another.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from lstm_fused.kernels import launcher
from lstm_fused.kernels.cell import (
    add_dot,
    cell_backward,
    cell_forward,
    load_c_before,
    load_gates,
    load_inputs,
    load_or_zero,
    load_peephole,
    offsets,
    save_step,
    store_gates,
    valid_rows,
)
from lstm_fused.kernels.plan import FLOAT64_BY_FMA, MAX_REGISTERS, Card, Kernel, Layer, Plan, Sizes, Tensors
from lstm_fused.kernels.scratch import zero_counters
from lstm_fused.kernels.sums import add_step, finish


@triton.jit(do_not_specialize=["T", "B"])
def lstm_forward_resident_kernel(
    xw,  # [T, B, 4H], accumulation dtype
    weight_hh,  # [4H, H]
    bias,  # [4H] or None
    peephole,  # [3, H] or None
    lengths,  # [B] or None
    h0,  # [B, H]
    c0,  # [B, H]
    h_n,  # [B, H]
    c_n,  # [B, H]
    y,  # [T, B, H]
    c_all,  # [T, B, H] or None
    gates_all,  # [T, B, 4H] or None
    T,
    B,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
):
    """The whole sequence; programs [batch tile]."""
    WIDE: tl.constexpr = xw.dtype.element_ty
    EXACT: tl.constexpr = weight_hh.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.arange(0, BH)
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    p = load_peephole(peephole, cols, H, WIDE)

    w_mask = (cols < H)[:, None] & (cols < H)[None, :]
    w = weight_hh + cols[None, :] * H + cols[:, None]
    w_i = tl.load(w, w_mask, other=0)
    w_f = tl.load(w + H * H, w_mask, other=0)
    w_g = tl.load(w + 2 * H * H, w_mask, other=0)
    w_o = tl.load(w + 3 * H * H, w_mask, other=0)

    h = tl.load(h0 + state, mask, other=0)
    c = tl.load(c0 + state, mask, other=0).to(WIDE)
    for step in range(T):
        t = T - 1 - step if REVERSE else step
        a_i, a_f, a_g, a_o = load_inputs(xw, bias, t, rows, cols, mask, B, H)
        a_i = tl.dot(h, w_i, a_i, input_precision=PRECISION, out_dtype=WIDE)
        a_f = tl.dot(h, w_f, a_f, input_precision=PRECISION, out_dtype=WIDE)
        a_g = tl.dot(h, w_g, a_g, input_precision=PRECISION, out_dtype=WIDE)
        a_o = tl.dot(h, w_o, a_o, input_precision=PRECISION, out_dtype=WIDE)
        m, c_t, gates = cell_forward((a_i, a_f, a_g, a_o), c, p, peephole is not None, EXACT=EXACT)
        valid = valid_rows(lengths, rows, t, B)
        h = tl.where(valid, m.to(h.dtype), h)
        c = tl.where(valid, c_t, c)
        save_step(h, c, gates, valid, y, c_all, gates_all, t, rows, cols, mask, B, H)
    tl.store(h_n + state, h, mask)
    tl.store(c_n + state, c.to(c_n.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["T", "B", "tiles"])
def lstm_backward_resident_kernel(
    dy,  # [T, B, H] or None
    dh_n,  # [B, H] or None
    dc_n,  # [B, H] or None
    c_all,  # [T, B, H]
    gates_all,  # [T, B, 4H]
    c0,  # [B, H]
    weight_hh,  # [4H, H]
    peephole,  # [3, H] or None
    lengths,  # [B] or None
    dxw,  # [T, B, 4H]
    dh0,  # [B, H]
    dc0,  # [B, H]
    dbias,  # [4H]
    dpeephole,  # [3, H]
    partials,  # [batch tiles, 7, H], accumulation dtype
    counters,  # [1], zero
    T,
    B,
    tiles,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
):
    """The whole sequence, from its last step to its first; programs [batch tile]."""
    WIDE: tl.constexpr = c_all.dtype.element_ty
    EXACT: tl.constexpr = weight_hh.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    KIND: tl.constexpr = dxw.dtype.element_ty
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.arange(0, BH)
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    p = load_peephole(peephole, cols, H, WIDE)

    w_mask = (cols < H)[:, None] & (cols < H)[None, :]
    w = weight_hh + cols[:, None] * H + cols[None, :]
    w_i = tl.load(w, w_mask, other=0)
    w_f = tl.load(w + H * H, w_mask, other=0)
    w_g = tl.load(w + 2 * H * H, w_mask, other=0)
    w_o = tl.load(w + 3 * H * H, w_mask, other=0)

    dh = load_or_zero(dh_n, state, mask, BB, BH, WIDE)
    dc = load_or_zero(dc_n, state, mask, BB, BH, WIDE)
    c = tl.load(c_all + offsets(0 if REVERSE else T - 1, rows, cols, B, H), mask, other=0)
    zero = tl.zeros((BB, BH), WIDE)
    sums = (zero, zero, zero, zero, zero, zero, zero)
    for step in range(T):
        t = step if REVERSE else T - 1 - step
        c_prev = load_c_before(c_all, c0, step, t, T, rows, cols, mask, B, H, REVERSE)
        gates = load_gates(gates_all + offsets(t, rows, cols, B, 4 * H), mask, H, WIDE)
        dm = dh
        if dy is not None:
            dm += tl.load(dy + offsets(t, rows, cols, B, H), mask, other=0)
        da, dc_prev = cell_backward(dm, dc, gates, c, c_prev, p, peephole is not None, EXACT=EXACT)
        valid = valid_rows(lengths, rows, t, B)
        store_gates(dxw + offsets(t, rows, cols, B, 4 * H), da, valid, mask, H)
        sums = add_step(sums, da, valid, c, c_prev, peephole is not None)
        da_i, da_f, da_g, da_o = da
        dh_prev = tl.dot(da_i.to(KIND), w_i, input_precision=PRECISION, out_dtype=WIDE)
        dh_prev = add_dot(da_f.to(KIND), w_f, dh_prev, PRECISION)
        dh_prev = add_dot(da_g.to(KIND), w_g, dh_prev, PRECISION)
        dh_prev = add_dot(da_o.to(KIND), w_o, dh_prev, PRECISION)
        dh = tl.where(valid, dh_prev, dh)
        dc = tl.where(valid, dc_prev, dc)
        c = c_prev
    tl.store(dh0 + state, dh.to(KIND), mask)
    tl.store(dc0 + state, dc.to(KIND), mask)
    finish(sums, partials, counters, dbias, dpeephole, tl.program_id(0), tiles, cols, H)


def plans(layer: Layer) -> Iterator[Plan]:
    """The one tile that holds all of H."""
    width = max(16, 1 << (layer.H - 1).bit_length())
    num_warps = 8 if width > 32 else 4
    yield Plan("resident", layer.precision, 16, width, width, num_warps, maxnreg=MAX_REGISTERS)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Reasons why a plan cannot run a layer on a card."""
    reasons = []
    if layer.H * layer.dtype.itemsize > 256:
        reasons.append(f"takes H up to {256 // layer.dtype.itemsize} in this dtype")
    by_fma = layer.dtype.itemsize == 8 and card.capability in FLOAT64_BY_FMA
    if card.capability.startswith("gfx") or (by_fma and layer.direction == "forward" and plan.BH > 16):
        reasons.append("would spill registers")
    return reasons


def shared(plan: Plan, layer: Layer) -> int:
    """Bytes of shared memory: the weights, and 20 KB for h and layout conversions."""
    return 4 * plan.BH * plan.BH * layer.dtype.itemsize + (20 << 10)


def forward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the forward kernel."""
    T, B, H = sizes
    launcher.launch(plan, lstm_forward_resident_kernel, plan.grid(B, H), tensors, (T, B), (H, reverse))


def backward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the backward kernel."""
    T, B, H = sizes
    tiles, columns = plan.grid(B, H)
    tensors += (zero_counters(tensors[3], 1),)
    kernel = lstm_backward_resident_kernel
    launcher.launch(plan, kernel, (tiles, columns), tensors, (T, B, tiles), (H, reverse))


KERNEL = Kernel(
    plans=plans,
    function=lambda direction: globals()[f"lstm_{direction}_resident_kernel"],
    why_not=why_not,
    shared=shared,
    forward=forward,
    backward=backward,
)
