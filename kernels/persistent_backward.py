"""The backward kernel with persistent weights; `lstm_fused.kernels.persistent` explains the scheme."""

from lstm_fused.kernels import cell, sums
from lstm_fused.kernels.exchange import RING, gather, place, publish, reset_bank
from lstm_fused.kernels.persistent_product import (
    by_rows,
    indices,
    layout_of_columns,
    left_operand,
    multiply,
    no_sums,
    weights_left,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# The equations and the sums are the other kernels' own, compiled for explicit layouts.
cell_backward = gluon.jit(cell.cell_backward.fn)
load_gates = gluon.jit(cell.load_gates.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)
add_step = gluon.jit(sums.add_step.fn)
finish = gluon.jit(sums.finish.fn)


@gluon.jit
def load_saved(
    dy, c_all, gates_all, step, T, B, rows, cols, mask, H: gl.constexpr, REVERSE: gl.constexpr,
    BELOW: gl.constexpr,
):  # fmt: skip
    """The tensors of a step, counted from the last, so many rows below: dy, the c before it, the gates.

    As they are in memory: to convert them is to wait for them. Of the last of these steps c is not loaded.
    """
    t = step if REVERSE else T - 1 - step
    before = t + 1 if REVERSE else t - 1
    state = rows[:, None].to(gl.int64) * H + cols[None, :] + BELOW * H
    dy_t = gl.zeros_like(state).to(c_all.dtype.element_ty)
    if dy is not None:
        dy_t = gl.load(dy + (t.to(gl.int64) * B * H + state), mask, other=0)
    c = gl.load(c_all + (before.to(gl.int64) * B * H + state), mask & (step < T - 1), other=0)
    at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
    gates = load_gates(gates_all + at_gates + BELOW * (4 * H), mask, H, gates_all.dtype.element_ty)
    return dy_t, c, gates


@gluon.jit
def widened(saved, c_first, is_last):
    """The tensors of `load_saved` in float32; of the last of these steps c is c_first."""
    dy_t, c, gates = saved
    i, f, g, o = gates
    gates = i.to(gl.float32), f.to(gl.float32), g.to(gl.float32), o.to(gl.float32)
    return dy_t.to(gl.float32), gl.where(is_last, c_first, c), gates


@gluon.jit(do_not_specialize=["T", "B", "first", "groups"])
def lstm_backward_persistent_kernel(
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
    partials,  # [groups, 7, H], float32
    exchange,  # [RING, groups * TILES, 4 * WIDTH / block, BB, block], all ones, padding zero: the ring of da
    counters,  # [hidden tiles], zeros
    timed_out,  # [1], set when a wait times out
    T,
    B,
    first,  # group of batch tiles of this launch
    groups,  # in all launches
    H: gl.constexpr,
    REVERSE: gl.constexpr,
    PRECISION: gl.constexpr,
    BB: gl.constexpr,
    BH: gl.constexpr,
    BK: gl.constexpr,  # terms of a piece of a warp's operands
    PIECES: gl.constexpr,  # pieces gathered together
    NATIVE: gl.constexpr,  # whether the card has a maximum of two 16-bit numbers in one instruction
    NUM_WARPS: gl.constexpr,
    TILES: gl.constexpr,  # batch tiles of a group, which a program takes in turn within each step
):
    """The whole sequence, from its last step to its first; programs [group of batch tiles, hidden tile]."""
    KIND: gl.constexpr = dxw.dtype.element_ty
    K_WIDTH: gl.constexpr = BK // 8  # so that a thread loads 16 bytes at once, or 8
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [NUM_WARPS, 1, 1], [1, 16, 8])
    WEIGHTS_LEFT: gl.constexpr = weights_left(BB)
    CHAINS: gl.constexpr = 4 if WEIGHTS_LEFT else 2  # sums that do not wait for one another
    of_da: gl.constexpr = gl.DotOperandLayout(1 if WEIGHTS_LEFT else 0, mma, K_WIDTH)
    of_weights: gl.constexpr = gl.DotOperandLayout(0 if WEIGHTS_LEFT else 1, mma, K_WIDTH)
    sums_of: gl.constexpr = gl.BlockedLayout(
        [NUM_WARPS, 1, 1], [1, 32 // BH, BH], [1, NUM_WARPS, 1], [2, 1, 0]
    )
    cells: gl.constexpr = gl.BlockedLayout([1, 1], [32 // BH, BH], [NUM_WARPS, 1], [1, 0])
    PIECE: gl.constexpr = (4 * H + NUM_WARPS * BK - 1) // (NUM_WARPS * BK) * BK  # terms of one warp
    WIDTH: gl.constexpr = PIECE * NUM_WARPS // 4  # columns of a gate
    # With padded columns, or several batch tiles, ptxas spills otherwise.
    ONE_POINTER: gl.constexpr = WIDTH > (H + BH - 1) // BH * BH or TILES > 1 or WEIGHTS_LEFT

    group = first + gl.program_id(0)
    tile = group * TILES
    rows = tile * BB + gl.arange(0, BB, gl.SliceLayout(1, cells))
    cols = gl.program_id(1) * BH + gl.arange(0, BH, gl.SliceLayout(0, cells))
    # Pointers of other tiles are those of the first and a constant, so that they take no registers.
    mask = ()
    for n in gl.static_range(TILES):
        mask += ((rows + n * BB < B)[:, None] & (cols < H)[None, :],)
    state = rows[:, None].to(gl.int64) * H + cols[None, :]
    p = load_peephole(peephole, cols, H, gl.float32)

    loaded: gl.constexpr = layout_of_columns(NUM_WARPS, BH, BK) if WEIGHTS_LEFT else of_weights
    warp, column, term = indices(loaded, WEIGHTS_LEFT, NUM_WARPS, BH, BK)
    column = gl.program_id(1) * BH + column
    unit = warp % (NUM_WARPS // 4) * PIECE + term
    w_at = weight_hh + (warp // (NUM_WARPS // 4) * H + unit) * H + column
    weights = ()
    for k in gl.static_range(0, PIECE, BK):
        piece = gl.load(w_at + k * H, (unit + k < H) & (column < H), other=0)
        weights += (left_operand(piece, of_weights) if WEIGHTS_LEFT else piece,)

    warp, m, term = indices(of_da, not WEIGHTS_LEFT, NUM_WARPS, BB, BK)
    slot = groups.to(gl.int64) * (TILES * BB * 4 * WIDTH)
    term += warp // (NUM_WARPS // 4) * WIDTH + warp % (NUM_WARPS // 4) * PIECE
    da_at = tile * (BB * 4 * WIDTH) + place(m, term, BB, BK)
    own = exchange + (tile * (BB * 4 * WIDTH) + place(rows[:, None] - tile * BB, cols[None, :], BB, BK))

    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 2, [2, 1, 0])
    partial = gl.allocate_shared_memory(gl.float32, [NUM_WARPS, BB, BH], shared)

    zero = gl.zeros([BB, BH], gl.float32, cells)
    last = 0 if REVERSE else T - 1
    stop, dh, dc, c, c_first, saved = (), (), (), (), (), ()  # of each batch tile
    for n in gl.static_range(TILES):
        if lengths is not None:
            stop += (gl.load(lengths + rows + n * BB, rows + n * BB < B, other=0),)
        else:
            stop += (gl.full([BB], T, gl.int64, gl.SliceLayout(1, cells)),)
        if dh_n is not None:
            dh += (gl.load(dh_n + state + n * (BB * H), mask[n], other=0).to(gl.float32),)
        else:
            dh += (zero,)
        if dc_n is not None:
            dc += (gl.load(dc_n + state + n * (BB * H), mask[n], other=0).to(gl.float32),)
        else:
            dc += (zero,)
        at = gl.to_tensor(last).to(gl.int64) * B * H + state
        c += (gl.load(c_all + at + n * (BB * H), mask[n], other=0),)
        saved += (
            load_saved(dy, c_all, gates_all, gl.to_tensor(0), T, B, rows, cols, mask[n], H, REVERSE, n * BB),
        )
        c_first += (gl.load(c0 + state + n * (BB * H), mask[n], other=0).to(gl.float32),)
    AHEAD: gl.constexpr = 2 if WEIGHTS_LEFT else 1  # steps
    if AHEAD == 2:
        one = gl.to_tensor(1)
        later = (load_saved(dy, c_all, gates_all, one, T, B, rows, cols, mask[0] & (one < T), H, REVERSE, 0),)
    sums = (zero, zero, zero, zero, zero, zero, zero)  # over all of its batch tiles
    for step in range(T):
        t = step if REVERSE else T - 1 - step
        dc_next, c_next = (), ()
        for n in gl.static_range(TILES):
            valid = ((t < stop[n]) & (rows + n * BB < B))[:, None]
            dy_t, c_prev, gates = widened(saved[n], c_first[n], step == T - 1)
            da, dc_prev = cell_backward(
                dh[n] + dy_t, dc[n], gates, c[n], c_prev, p, peephole is not None, EXACT=False
            )
            da_i, da_f, da_g, da_o = da
            there = own + step % RING * slot + n * (BB * 4 * WIDTH)
            publish(there, gl.where(valid, da_i, 0.0).to(KIND))
            publish(there + BB * WIDTH, gl.where(valid, da_f, 0.0).to(KIND))
            publish(there + 2 * BB * WIDTH, gl.where(valid, da_g, 0.0).to(KIND))
            publish(there + 3 * BB * WIDTH, gl.where(valid, da_o, 0.0).to(KIND))
            if n == TILES - 1:
                # This program has gathered slot t - 1, so all have published it and have gathered slot t - 2.
                reset_bank(own, step, 2, slot, 4, BB * WIDTH, TILES, BB * 4 * WIDTH, NUM_WARPS)
            at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
            store_gates(dxw + at_gates + n * (BB * 4 * H), da, valid, mask[n], H)
            sums = add_step(sums, da, valid, c[n], c_prev, peephole is not None)
            dc_next += (gl.where(valid, dc_prev, dc[n]),)
            c_next += (c_prev,)
        dc, c = dc_next, c_next
        dh_next, saved_next = (), ()
        for n in gl.static_range(TILES):
            if AHEAD == 1:  # these loads overlap with the wait
                saved_next += (
                    load_saved(
                        dy, c_all, gates_all, step + 1, T, B, rows, cols, mask[n] & (step + 1 < T), H,
                        REVERSE, n * BB,
                    ),
                )  # fmt: skip
            valid = ((t < stop[n]) & (rows + n * BB < B))[:, None]
            now = exchange + step % RING * slot + n * (BB * 4 * WIDTH)
            chains = ()
            for _ in gl.static_range(CHAINS):
                chains += (no_sums(mma, NUM_WARPS, BB, BH),)
            for first_k in gl.static_range(0, len(weights), PIECES):
                da_all = gather(
                    now, da_at, timed_out, first_k, min(first_k + PIECES, len(weights)), BK, BB,
                    ONE_POINTER, BB * BK // 32, NATIVE,
                )  # fmt: skip
                for k in gl.static_range(len(da_all)):
                    chains += (multiply(da_all[k], weights[first_k + k], chains[0], PRECISION),)
                    chains = chains[1:]
            if AHEAD == 2:  # after the loads that poll, which would wait for these
                saved_next += (
                    load_saved(
                        dy, c_all, gates_all, step + 2, T, B, rows, cols, mask[n] & (step + 2 < T), H,
                        REVERSE, n * BB,
                    ),
                )  # fmt: skip
            product = chains[0]
            for k in gl.static_range(1, CHAINS):
                product += chains[k]
            partial.store(by_rows(product, BB))
            total = gl.convert_layout(gl.sum(partial.load(sums_of), 0), cells)
            dh_next += (gl.where(valid, total, dh[n]),)
        dh = dh_next
        if AHEAD == 2:
            saved, later = later, saved_next
        else:
            saved = saved_next
    for n in gl.static_range(TILES):
        gl.store(dh0 + state + n * (BB * H), dh[n].to(KIND), mask[n])
        gl.store(dc0 + state + n * (BB * H), dc[n].to(KIND), mask[n])
    finish(sums, partials, counters + gl.program_id(1), dbias, dpeephole, group, groups, cols, H)
