"""The forward kernel with persistent weights; `lstm_fused.kernels.persistent` explains the scheme."""

from lstm_fused.kernels import cell
from lstm_fused.kernels.exchange import RING, gather, publish, reset_bank
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

# The equations are the other kernels' own, compiled for explicit layouts.
cell_forward = gluon.jit(cell.cell_forward.fn)
load_gates = gluon.jit(cell.load_gates.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)


@gluon.jit
def load_inputs(xw, step, T, B, rows, cols, mask, H: gl.constexpr, REVERSE: gl.constexpr):
    """W_ih x of a step, without the bias."""
    t = T - 1 - step if REVERSE else step
    at = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
    return load_gates(xw + at, mask, H, gl.float32)


@gluon.jit(do_not_specialize=["T", "B", "first", "groups"])
def lstm_forward_persistent_kernel(
    xw,  # [T, B, 4H], float32
    weight_hh,  # [4H, H]
    bias,  # [4H] or None
    peephole,  # [3H] or None
    lengths,  # [B] or None
    h0,  # [B, H]
    c0,  # [B, H]
    h_n,  # [B, H]
    c_n,  # [B, H]
    y,  # [T, B, H]
    c_all,  # [T, B, H] or None
    gates_all,  # [T, B, 4H] or None
    exchange,  # [RING, groups * TILES * BB, WIDTH], all ones, padding columns zero: the ring buffer of h
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
    """The whole sequence; programs [group of batch tiles, hidden tile]."""
    KIND: gl.constexpr = h0.dtype.element_ty
    K_WIDTH: gl.constexpr = BK // 8  # so that a thread loads 16 bytes at once, or 8
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [NUM_WARPS, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, mma, K_WIDTH)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, K_WIDTH)
    sums: gl.constexpr = gl.BlockedLayout([NUM_WARPS, 1, 4], [1, 32 // BH, BH], [1, NUM_WARPS, 1], [2, 1, 0])
    cells: gl.constexpr = gl.BlockedLayout([1, 1], [32 // BH, BH], [NUM_WARPS, 1], [1, 0])
    PIECE: gl.constexpr = (H + NUM_WARPS * BK - 1) // (NUM_WARPS * BK) * BK  # terms of one warp
    WIDTH: gl.constexpr = PIECE * NUM_WARPS
    PADDED: gl.constexpr = WIDTH > (H + BH - 1) // BH * BH

    tile = (first + gl.program_id(0)) * TILES
    rows, masks, states, own = (), (), (), ()  # of each batch tile
    for n in gl.static_range(TILES):
        rows += ((tile + n) * BB + gl.arange(0, BB, gl.SliceLayout(1, cells)),)
    cols = gl.program_id(1) * BH + gl.arange(0, BH, gl.SliceLayout(0, cells))
    for n in gl.static_range(TILES):
        masks += ((rows[n] < B)[:, None] & (cols < H)[None, :],)
        states += (rows[n][:, None].to(gl.int64) * H + cols[None, :],)
    p = load_peephole(peephole, cols, H, gl.float32)

    gate_of = gl.arange(0, 4 * BH, gl.SliceLayout(0, gl.SliceLayout(1, right)))[None, None, :]
    unit = gl.program_id(1) * BH + gate_of // 4
    ks = gl.arange(0, NUM_WARPS, gl.SliceLayout(1, gl.SliceLayout(2, right)))[:, None, None] * PIECE
    ks = ks + gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(2, right)))[None, :, None]
    w_at = weight_hh + (gate_of % 4 * H + unit) * H + ks
    weights = ()
    for k in gl.static_range(0, PIECE, BK):
        weights += (gl.load(w_at + k, (unit < H) & (ks + k < H), other=0),)

    m = tile * BB + gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(2, left)))[None, :, None]
    ka = gl.arange(0, NUM_WARPS, gl.SliceLayout(1, gl.SliceLayout(2, left)))[:, None, None] * PIECE
    ka = ka + gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(1, left)))[None, None, :]
    slot = groups.to(gl.int64) * (TILES * BB * WIDTH)
    h_at = m * WIDTH + ka
    for n in gl.static_range(TILES):
        own += (exchange + (rows[n][:, None] * WIDTH + cols[None, :]),)

    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8 if BH >= 16 else 4, [2, 1, 0])
    partial = gl.allocate_shared_memory(gl.float32, [NUM_WARPS, BB, 4 * BH], shared)

    b_i = gl.zeros([1, BH], gl.float32, cells)
    b_f, b_g, b_o = b_i, b_i, b_i
    if bias is not None:
        b_i, b_f, b_g, b_o = load_gates((bias + cols)[None, :], (cols < H)[None, :], H, gl.float32)
    stop, h, c = (), (), ()  # of each batch tile
    for n in gl.static_range(TILES):
        if lengths is not None:
            stop += (gl.load(lengths + rows[n], rows[n] < B, other=0),)
        else:
            stop += (gl.full([BB], T, gl.int64, gl.SliceLayout(1, cells)),)
        h += (gl.load(h0 + states[n], masks[n], other=0),)
        c += (gl.load(c0 + states[n], masks[n], other=0).to(gl.float32),)
        publish(own[n], h[n])
    if TILES > 1:
        ahead = load_inputs(xw, gl.to_tensor(0), T, B, rows[0], cols, masks[0], H, REVERSE)
    for step in range(T):
        t = T - 1 - step if REVERSE else step
        h_next, c_next = (), ()
        for n in gl.static_range(TILES):
            at = t.to(gl.int64) * B * H + states[n]
            at_gates = (t.to(gl.int64) * B + rows[n][:, None]) * (4 * H) + cols[None, :]
            if TILES == 1:
                x = load_gates(xw + at_gates, masks[n], H, gl.float32)
            else:  # a tile ahead, so that they overlap with the tile before: its h may be there at once
                after = step + (n + 1) // TILES
                mask = masks[(n + 1) % TILES] & (after < T)
                x = ahead
                ahead = load_inputs(xw, after, T, B, rows[(n + 1) % TILES], cols, mask, H, REVERSE)
            x_i, x_f, x_g, x_o = x
            valid = ((t < stop[n]) & (rows[n] < B))[:, None]
            now = exchange + step % RING * slot + n * (BB * WIDTH)
            product = gl.zeros([NUM_WARPS, BB, 4 * BH], gl.float32, mma)
            for first_k in gl.static_range(0, len(weights), PIECES):
                h_all = gather(
                    now, h_at, timed_out, first_k, min(first_k + PIECES, len(weights)), BK, PADDED,
                    BB * BK // 32, NATIVE,
                )  # fmt: skip
                for k in gl.static_range(len(h_all)):
                    product = mma_v2(h_all[k], weights[first_k + k], product, input_precision=PRECISION)
            partial.store(product)
            total = gl.sum(partial.load(sums), 0)
            even, odd = gl.split(gl.reshape(total, (BB, BH, 2, 2)))
            a_i, a_g = gl.split(even)
            a_f, a_o = gl.split(odd)
            a_i = gl.convert_layout(a_i, cells) + (x_i + b_i)
            a_f = gl.convert_layout(a_f, cells) + (x_f + b_f)
            a_g = gl.convert_layout(a_g, cells) + (x_g + b_g)
            a_o = gl.convert_layout(a_o, cells) + (x_o + b_o)

            a = a_i, a_f, a_g, a_o
            h_t, c_t, gates = cell_forward(a, c[n], p, peephole is not None, EXACT=False)
            h_next += (gl.where(valid, h_t.to(KIND), h[n]),)
            c_next += (gl.where(valid, c_t, c[n]),)
            publish(own[n] + (step + 1) % RING * slot, h_next[n])
            if n == TILES - 1:
                # This program has gathered slot t, so all have published it and have gathered slot t - 1.
                reset_bank(own, step, 1, slot, 1, WIDTH, NUM_WARPS)
            gl.store(y + at, gl.where(valid, h_next[n], 0.0).to(KIND), masks[n])
            if c_all is not None:
                gl.store(c_all + at, c_next[n], masks[n])
                store_gates(gates_all + at_gates, gates, valid, masks[n], H)
        h, c = h_next, c_next
    for n in gl.static_range(TILES):
        gl.store(h_n + states[n], h[n], masks[n])
        gl.store(c_n + states[n], c[n].to(c_n.dtype.element_ty), masks[n])
