"""The backward kernel with persistent weights; `lstm_fused.kernels.persistent` explains the scheme."""

from lstm_fused.kernels import cell, sums
from lstm_fused.kernels.exchange import RING, gather, publish, reset_bank
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

# The equations and the sums are the other kernels' own, compiled for explicit layouts.
cell_backward = gluon.jit(cell.cell_backward.fn)
load_gates = gluon.jit(cell.load_gates.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)
add_step = gluon.jit(sums.add_step.fn)
finish = gluon.jit(sums.finish.fn)


@gluon.jit
def load_saved(
    dy, c_all, c0, gates_all, step, T, B, rows, cols, mask, H: gl.constexpr, REVERSE: gl.constexpr,
    BELOW: gl.constexpr,
):  # fmt: skip
    """The tensors of a step, counted from the last, so many rows below: dy, the c before it, the gates."""
    t = step if REVERSE else T - 1 - step
    before = t + 1 if REVERSE else t - 1
    first = step == T - 1
    state = rows[:, None].to(gl.int64) * H + cols[None, :]
    dy_t = gl.zeros_like(state).to(gl.float32)
    if dy is not None:
        dy_t = gl.load(dy + (t.to(gl.int64) * B * H + state) + BELOW * H, mask, other=0).to(gl.float32)
    c = gl.load(c_all + (before.to(gl.int64) * B * H + state) + BELOW * H, mask & (not first), other=0)
    c += gl.load(c0 + state + BELOW * H, mask & first, other=0).to(gl.float32)
    at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
    i, f, g, o = load_gates(gates_all + at_gates + BELOW * (4 * H), mask, H, gl.float32)
    return dy_t, c, i, f, g, o


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
    exchange,  # [RING, groups * TILES * BB, 4 * WIDTH], all ones, padding columns zero: the ring buffer of da
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
    left: gl.constexpr = gl.DotOperandLayout(0, mma, K_WIDTH)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, K_WIDTH)
    sums_of: gl.constexpr = gl.BlockedLayout(
        [NUM_WARPS, 1, 1], [1, 32 // BH, BH], [1, NUM_WARPS, 1], [2, 1, 0]
    )
    cells: gl.constexpr = gl.BlockedLayout([1, 1], [32 // BH, BH], [NUM_WARPS, 1], [1, 0])
    PIECE: gl.constexpr = (4 * H + NUM_WARPS * BK - 1) // (NUM_WARPS * BK) * BK  # terms of one warp
    WIDTH: gl.constexpr = PIECE * NUM_WARPS // 4  # columns of a gate
    # With padded columns, or several batch tiles, ptxas spills otherwise.
    ONE_POINTER: gl.constexpr = WIDTH > (H + BH - 1) // BH * BH or TILES > 1

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

    column = gl.arange(0, BH, gl.SliceLayout(0, gl.SliceLayout(1, right)))[None, None, :]
    column = gl.program_id(1) * BH + column
    warp = gl.arange(0, NUM_WARPS, gl.SliceLayout(1, gl.SliceLayout(2, right)))[:, None, None]
    unit = warp % (NUM_WARPS // 4) * PIECE
    unit = unit + gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(2, right)))[None, :, None]
    w_at = weight_hh + (warp // (NUM_WARPS // 4) * H + unit) * H + column
    weights = ()
    for k in gl.static_range(0, PIECE, BK):
        weights += (gl.load(w_at + k * H, (unit + k < H) & (column < H), other=0),)

    m = tile * BB + gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(2, left)))[None, :, None]
    warp_a = gl.arange(0, NUM_WARPS, gl.SliceLayout(1, gl.SliceLayout(2, left)))[:, None, None]
    unit_a = warp_a % (NUM_WARPS // 4) * PIECE
    unit_a = unit_a + gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(1, left)))[None, None, :]
    slot = groups.to(gl.int64) * (TILES * BB * 4 * WIDTH)
    da_at = m * (4 * WIDTH) + warp_a // (NUM_WARPS // 4) * WIDTH + unit_a
    own = exchange + (rows[:, None] * (4 * WIDTH) + cols[None, :])

    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 2, [2, 1, 0])
    partial = gl.allocate_shared_memory(gl.float32, [NUM_WARPS, BB, BH], shared)

    zero = gl.zeros([BB, BH], gl.float32, cells)
    last = 0 if REVERSE else T - 1
    stop, dh, dc, c, saved = (), (), (), (), ()  # of each batch tile
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
            load_saved(
                dy, c_all, c0, gates_all, gl.to_tensor(0), T, B, rows, cols, mask[n], H, REVERSE, n * BB
            ),
        )
    sums = (zero, zero, zero, zero, zero, zero, zero)  # over all of its batch tiles
    for step in range(T):
        t = step if REVERSE else T - 1 - step
        dc_next, c_next = (), ()
        for n in gl.static_range(TILES):
            valid = ((t < stop[n]) & (rows + n * BB < B))[:, None]
            dy_t, c_prev, i, f, g, o = saved[n]
            da, dc_prev = cell_backward(
                dh[n] + dy_t, dc[n], (i, f, g, o), c[n], c_prev, p, peephole is not None, EXACT=False
            )
            da_i, da_f, da_g, da_o = da
            there = own + step % RING * slot + n * (BB * 4 * WIDTH)
            publish(there, gl.where(valid, da_i, 0.0).to(KIND))
            publish(there + WIDTH, gl.where(valid, da_f, 0.0).to(KIND))
            publish(there + 2 * WIDTH, gl.where(valid, da_g, 0.0).to(KIND))
            publish(there + 3 * WIDTH, gl.where(valid, da_o, 0.0).to(KIND))
            if n == TILES - 1:
                # This program has gathered slot t - 1, so all have published it and have gathered slot t - 2.
                reset_bank(own, step, 2, slot, 4, WIDTH, TILES, BB * 4 * WIDTH, NUM_WARPS)
            at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
            store_gates(dxw + at_gates + n * (BB * 4 * H), da, valid, mask[n], H)
            sums = add_step(sums, da, valid, c[n], c_prev, peephole is not None)
            dc_next += (gl.where(valid, dc_prev, dc[n]),)
            c_next += (c_prev,)
        dc, c = dc_next, c_next
        dh_next, saved_next = (), ()
        for n in gl.static_range(TILES):
            # The loads of the next step overlap with the wait of this one.
            saved_next += (
                load_saved(
                    dy, c_all, c0, gates_all, step + 1, T, B, rows, cols, mask[n] & (step + 1 < T),
                    H, REVERSE, n * BB,
                ),
            )  # fmt: skip
            valid = ((t < stop[n]) & (rows + n * BB < B))[:, None]
            now = exchange + step % RING * slot + n * (BB * 4 * WIDTH)
            none = gl.zeros([NUM_WARPS, BB, BH], gl.float32, mma)
            even, odd = none, none
            for first_k in gl.static_range(0, len(weights), PIECES):
                da_all = gather(
                    now, da_at, timed_out, first_k, min(first_k + PIECES, len(weights)), BK, ONE_POINTER,
                    BB * BK // 32, NATIVE,
                )  # fmt: skip
                for k in gl.static_range(len(da_all)):
                    even, odd = odd, mma_v2(da_all[k], weights[first_k + k], even, input_precision=PRECISION)
            partial.store(even + odd)
            total = gl.convert_layout(gl.sum(partial.load(sums_of), 0), cells)
            dh_next += (gl.where(valid, total, dh[n]),)
        dh, saved = dh_next, saved_next
    for n in gl.static_range(TILES):
        gl.store(dh0 + state + n * (BB * H), dh[n].to(KIND), mask[n])
        gl.store(dc0 + state + n * (BB * H), dc[n].to(KIND), mask[n])
    finish(sums, partials, counters + gl.program_id(1), dbias, dpeephole, group, groups, cols, H)
