"""The step kernels, for every size and dtype: the code on the device of one time step; steps.py launches it.

A launch has the same arguments in every call of a layer, so that one CUDA graph serves all of them: tensors'
addresses are in a table in device memory, and the step is the table's base step plus ``node``.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from lstm_fused.kernels.cell import (
    add_dot,
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
from lstm_fused.kernels.launcher import BEFORE_3_8
from lstm_fused.kernels.plan import LIKE_SM_89, MAX_REGISTERS, Card, Kernel, Layer, Plan
from lstm_fused.kernels.table import (
    BACKWARD,
    FORWARD,
    double_buffered,
    may_read_table,
    pointer,
    time_of,
    wait_for_step_before,
)
from lstm_fused.kernels.variant import add_normalized, load_share, masked


@triton.jit(do_not_specialize=["node", "B"])
def lstm_forward_step_kernel(
    table,
    node,
    B,
    H: tl.constexpr,
    P: tl.constexpr,
    KINDS: tl.constexpr,  # the dtype of each tensor of the table, or None
    ALIGNED: tl.constexpr,  # whether all addresses are multiples of 16 bytes
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    CLIP: tl.constexpr = None,
    SHARED: tl.constexpr = False,
    PDL: tl.constexpr = False,
):
    """h, c and the gates of one step, of `ForwardTensors`; programs [batch tile, hidden tile]."""
    may_read_table(node, PDL)
    step = tl.load(table) + node
    t = time_of(table, step)
    PROJECTED: tl.constexpr = KINDS[FORWARD.weight_hr] is not None
    xw = pointer(table, FORWARD.xw, KINDS, ALIGNED)
    weight_hh = pointer(table, FORWARD.weight_hh, KINDS, ALIGNED)
    bias = pointer(table, FORWARD.bias, KINDS, ALIGNED)
    peephole = pointer(table, FORWARD.peephole, KINDS, ALIGNED)
    lengths = pointer(table, FORWARD.lengths, KINDS, ALIGNED)
    h_prev = (
        pointer(table, FORWARD.h, KINDS, ALIGNED)
        if PROJECTED
        else double_buffered(table, step, FORWARD.h, KINDS, ALIGNED)
    )
    h_next = (
        pointer(table, FORWARD.h_next, KINDS, ALIGNED)
        if PROJECTED
        else double_buffered(table, step + 1, FORWARD.h, KINDS, ALIGNED)
    )
    c_state = pointer(table, FORWARD.c_state, KINDS, ALIGNED)
    y = pointer(table, FORWARD.y, KINDS, ALIGNED) if not PROJECTED else None
    c_all = pointer(table, FORWARD.c_all, KINDS, ALIGNED)
    gates_all = pointer(table, FORWARD.gates_all, KINDS, ALIGNED)
    hw = pointer(table, FORWARD.hw, KINDS, ALIGNED)
    gain_hh = pointer(table, FORWARD.gain_hh, KINDS, ALIGNED)
    h_mask = pointer(table, FORWARD.h_mask, KINDS, ALIGNED)
    # The zoneout of h is left to the projection, if there is one.
    ZONEOUT_H: tl.constexpr = KINDS[FORWARD.zoneout_h] is not None and not PROJECTED
    zoneout_h = pointer(table, FORWARD.zoneout_h, KINDS, ALIGNED) if ZONEOUT_H else None
    zoneout_c = pointer(table, FORWARD.zoneout_c, KINDS, ALIGNED)

    WIDE: tl.constexpr = KINDS[FORWARD.xw]
    EXACT: tl.constexpr = KINDS[FORWARD.weight_hh] == tl.float32 and PRECISION == "ieee"
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, mask = (rows < B)[:, None], (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    w_rows, w_mask = gate_rows(tl.program_id(1) * BH, H, BH)
    w_at = weight_hh + index(w_rows, 4 * H * P)[None, :] * P
    ks = tl.arange(0, BK)

    # These loads read nothing that the step before writes, so they come before the wait for it.
    if hw is None:
        w = tl.load(w_at + ks[:, None], w_mask[None, :] & (ks < P)[:, None], other=0)
    a = load_inputs(xw, bias, t, rows, cols, mask, B, H)
    p = load_peephole(peephole, cols, H, WIDE)
    valid = valid_rows(lengths, rows, t, B)

    wait_for_step_before(PDL)
    c_prev = tl.load(c_state + state, mask, other=0)
    if hw is None:
        # The first terms are multiplied last, so that the loop's loads overlap with the load of their h.
        h = load_h(h_prev, h_mask, rows, ks, row_mask, B, P)
        product = tl.zeros((BB, 4 * BH), WIDE)
        for k in range(BK, P, BK):
            ks = k + tl.arange(0, BK)
            h_k = load_h(h_prev, h_mask, rows, ks, row_mask, B, P)
            w_k = tl.load(w_at + ks[:, None], w_mask[None, :] & (ks < P)[:, None], other=0)
            product = add_dot(h_k, w_k, product, PRECISION)
        product = add_dot(h, w, product, PRECISION)
        a = add_product(a, product, BB, BH)
    else:
        a = add_normalized(a, hw, gain_hh, rows, cols, mask, B, H, BB, BK)
    h, c, gates = cell_forward(a, c_prev, p, peephole is not None, CLIP, EXACT)
    if zoneout_h is not None:
        share = load_share(zoneout_h, t, rows, cols, mask, B, H, SHARED, WIDE)
        h = share * tl.load(h_prev + state, mask, other=0).to(WIDE) + (1 - share) * h
    if zoneout_c is not None:
        share = load_share(zoneout_c, t, rows, cols, mask, B, H, SHARED, WIDE)
        c = share * c_prev + (1 - share) * c

    c = tl.where(valid, c, c_prev)
    tl.store(c_state + state, c, mask)
    save_step(h, c, gates, valid, y, c_all, gates_all, t, rows, cols, mask, B, H)
    h = h.to(h_next.dtype.element_ty)
    if y is None:
        h = tl.where(valid, h, 0)
    elif lengths is not None:
        h = tl.where(valid, h, tl.load(h_prev + state, mask, other=0))
    tl.store(h_next + state, h, mask)


@triton.jit
def load_h(h_prev, h_mask, rows, ks, row_mask, B, P: tl.constexpr):
    """The columns ks of h_{t-1}, with recurrent dropout applied."""
    h = tl.load(h_prev + offsets(0, rows, ks, B, P), row_mask & (ks < P)[None, :], other=0)
    if h_mask is not None:
        h = masked(h, h_mask, rows, ks, row_mask, B, P)
    return h


@triton.jit(do_not_specialize=["node", "B"])
def lstm_backward_step_kernel(
    table,
    node,
    B,
    H: tl.constexpr,
    P: tl.constexpr,
    KINDS: tl.constexpr,  # the dtype of each tensor of the table, or None
    ALIGNED: tl.constexpr,  # whether all addresses are multiples of 16 bytes
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    CLIP: tl.constexpr = None,
    SHARED: tl.constexpr = False,
    PDL: tl.constexpr = False,
):
    """The da of one step and the gradient of the c before it, of `BackwardTensors`.

    Programs [batch tile, hidden tile]. The last launch is one past the last step, and computes dh only.
    """
    may_read_table(node, PDL)
    step = tl.load(table) + node
    t, t_after, t_before = time_of(table, step), time_of(table, step - 1), time_of(table, step + 1)
    PROJECTED: tl.constexpr = KINDS[BACKWARD.weight_hr] is not None
    K: tl.constexpr = P if PROJECTED else 4 * H
    HAS_DY: tl.constexpr = KINDS[BACKWARD.dy] is not None and not PROJECTED
    ZONEOUT_H: tl.constexpr = KINDS[BACKWARD.zoneout_h] is not None and not PROJECTED
    H_MASK: tl.constexpr = KINDS[BACKWARD.h_mask] is not None and not PROJECTED
    dy = pointer(table, BACKWARD.dy, KINDS, ALIGNED) if HAS_DY else None
    left = pointer(table, BACKWARD.dh_t if PROJECTED else BACKWARD.dhw, KINDS, ALIGNED)
    weight = pointer(table, BACKWARD.weight_hr if PROJECTED else BACKWARD.weight_hh, KINDS, ALIGNED)
    dh_state = pointer(table, BACKWARD.dh_state, KINDS, ALIGNED) if not PROJECTED else None
    dc_state = pointer(table, BACKWARD.dc_state, KINDS, ALIGNED)
    c_all = pointer(table, BACKWARD.c_all, KINDS, ALIGNED)
    c0 = pointer(table, BACKWARD.c0, KINDS, ALIGNED)
    gates_all = pointer(table, BACKWARD.gates_all, KINDS, ALIGNED)
    peephole = pointer(table, BACKWARD.peephole, KINDS, ALIGNED)
    lengths = pointer(table, BACKWARD.lengths, KINDS, ALIGNED)
    dxw = pointer(table, BACKWARD.dxw, KINDS, ALIGNED)
    h_mask = pointer(table, BACKWARD.h_mask, KINDS, ALIGNED) if H_MASK else None
    zoneout_h = pointer(table, BACKWARD.zoneout_h, KINDS, ALIGNED) if ZONEOUT_H else None
    kept = pointer(table, BACKWARD.kept, KINDS, ALIGNED) if ZONEOUT_H else None
    zoneout_c = pointer(table, BACKWARD.zoneout_c, KINDS, ALIGNED)

    WIDE: tl.constexpr = KINDS[BACKWARD.c_all]
    EXACT: tl.constexpr = KINDS[BACKWARD.weight_hh] == tl.float32 and PRECISION == "ieee"
    rows = tl.program_id(0) * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, col_mask = (rows < B)[:, None], (cols < H)[None, :]
    mask = row_mask & col_mask
    there = mask & (t >= 0)
    state, at = offsets(0, rows, cols, B, H), offsets(t, rows, cols, B, H)
    w_at = weight + cols[None, :]
    ks = tl.arange(0, BK)

    # These loads read nothing that the step before writes, so they come before the wait for it.
    w = tl.load(w_at + index(ks, K * H)[:, None] * H, (ks < K)[:, None] & col_mask, other=0)
    if dy is not None:
        dy_t = tl.load(dy + at, there, other=0)
    c = tl.load(c_all + at, there, other=0)
    if t_before >= 0:
        c_prev = tl.load(c_all + offsets(t_before, rows, cols, B, H), there, other=0)
    else:
        c_prev = tl.load(c0 + state, there, other=0).to(WIDE)
    gates = load_gates(gates_all + offsets(t, rows, cols, B, 4 * H), there, H, WIDE)
    p = load_peephole(peephole, cols, H, WIDE)
    valid = valid_rows(lengths, rows, t, B)
    after = valid_rows(lengths, rows, t_after, B) & (t_after >= 0)

    wait_for_step_before(PDL)
    dc = tl.load(dc_state + state, mask, other=0)
    dh = tl.zeros((BB, BH), WIDE)
    if t_after >= 0 or dh_state is None:
        start = 0 if dh_state is None else t_after
        da_after = tl.load(left + offsets(start, rows, ks, B, K), row_mask & (ks < K)[None, :], other=0)
        for k in range(BK, K, BK):
            ks = k + tl.arange(0, BK)
            da_k = tl.load(left + offsets(start, rows, ks, B, K), row_mask & (ks < K)[None, :], other=0)
            w_k = tl.load(w_at + index(ks, K * H)[:, None] * H, (ks < K)[:, None] & col_mask, other=0)
            dh = add_dot(da_k, w_k, dh, PRECISION)
        dh = add_dot(da_after, w, dh, PRECISION)
    if h_mask is not None:
        dh *= tl.load(h_mask + state, mask, other=0).to(WIDE)
    if kept is not None:
        dh += tl.load(kept + state, mask, other=0)
    if dh_state is not None:
        dh = tl.where(after, dh, tl.load(dh_state + state, mask, other=0))
        tl.store(dh_state + state, dh, mask)

    if dy is not None:
        dh += dy_t
    if kept is not None:
        share = load_share(zoneout_h, t, rows, cols, there, B, H, SHARED, WIDE)
        tl.store(kept + state, share * dh, there)
        dh = (1 - share) * dh
    if zoneout_c is not None:
        share = load_share(zoneout_c, t, rows, cols, there, B, H, SHARED, WIDE)
        i, f, g, _o = gates
        c = clipped(f * c_prev + i * g, CLIP)
        dc_here = (1 - share) * dc
        da, dc_prev = cell_backward(dh, dc_here, gates, c, c_prev, p, peephole is not None, CLIP, EXACT)
        dc_prev += share * dc
    else:
        da, dc_prev = cell_backward(dh, dc, gates, c, c_prev, p, peephole is not None, CLIP, EXACT)
    tl.store(dc_state + state, tl.where(valid, dc_prev, dc), there)
    store_gates(dxw + offsets(t, rows, cols, B, 4 * H), da, valid, there, H)


def plans(layer: Layer) -> Iterator[Plan]:
    """The tile for a dtype and batch; where that would spill, fewer rows or the most registers."""
    half = layer.dtype.itemsize == 2
    few = layer.B <= 16 or layer.dtype == torch.float64
    BB = 16 if few else 64 if half and layer.B > 64 else 32
    plan = Plan("step", layer.precision, BB, 16, 64 if half else 32, 4, 3 if half else 2)
    yield plan
    yield replace(plan, BB=32) if BB > 32 else replace(plan, maxnreg=MAX_REGISTERS)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Reasons why a plan cannot run a layer on a card."""
    backward, tf32 = layer.direction == "backward", layer.dtype == torch.float32 and layer.precision == "tf32"
    terms = layer.P or (4 * layer.H if backward else layer.H)
    unrolled = 768 if BEFORE_3_8 else 512  # the most terms whose loop Triton unrolls
    spills = card.capability in LIKE_SM_89 and (
        (not backward and plan.BB == 64 and 448 < terms <= unrolled)
        or (backward and tf32 and plan.BB == 16 and plan.maxnreg is None and 256 < terms <= 512)
    )
    return ["would spill registers"] if spills else []


KERNEL = Kernel(
    plans=plans,
    function=lambda direction: globals()[f"lstm_{direction}_step_kernel"],
    constants=("BK",),
    every_option=True,
    why_not=why_not,
)
