"""The forward kernel with persistent weights; `lstm_fused.kernels.persistent` explains the scheme."""

from lstm_fused.kernels import cell
from lstm_fused.kernels.exchange import RING, gather, place, publish, reset_bank
from lstm_fused.kernels.persistent_product import by_rows, column_of, indices, multiply, no_sums, weights_left
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# The equations are the other kernels' own, compiled for explicit layouts.
cell_forward = gluon.jit(cell.cell_forward.fn)
load_gates = gluon.jit(cell.load_gates.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)


@gluon.jit
def gates_at(step, T, B, rows, cols, H: gl.constexpr, REVERSE: gl.constexpr):
    """Offsets of a step's gates in a tensor [T, B, 4H]."""
    t = T - 1 - step if REVERSE else step
    return (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]


@gluon.jit(do_not_specialize=["T", "B", "first", "groups"])
def lstm_forward_persistent_kernel(
    xw,  # [T, B, 4H], float32
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
    exchange,  # [RING, groups * TILES, WIDTH / block, BB, block], all ones, padding zero: the ring of h
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
    WEIGHTS_LEFT: gl.constexpr = weights_left(BB)
    of_h: gl.constexpr = gl.DotOperandLayout(1 if WEIGHTS_LEFT else 0, mma, K_WIDTH)
    of_weights: gl.constexpr = gl.DotOperandLayout(0 if WEIGHTS_LEFT else 1, mma, K_WIDTH)
    sums: gl.constexpr = gl.BlockedLayout([NUM_WARPS, 1, 4], [1, 32 // BH, BH], [1, NUM_WARPS, 1], [2, 1, 0])
    cells: gl.constexpr = gl.BlockedLayout([1, 1], [32 // BH, BH], [NUM_WARPS, 1], [1, 0])
    PIECE: gl.constexpr = (H + NUM_WARPS * BK - 1) // (NUM_WARPS * BK) * BK  # terms of one warp
    WIDTH: gl.constexpr = PIECE * NUM_WARPS
    # With padded columns, or several batch tiles, ptxas spills otherwise.
    ONE_POINTER: gl.constexpr = WIDTH > (H + BH - 1) // BH * BH or TILES > 1 or WEIGHTS_LEFT

    tile = (first + gl.program_id(0)) * TILES
    rows = tile * BB + gl.arange(0, BB, gl.SliceLayout(1, cells))
    cols = gl.program_id(1) * BH + gl.arange(0, BH, gl.SliceLayout(0, cells))
    # Pointers of other tiles are those of the first and a constant, so that they take no registers.
    mask = ()
    for n in gl.static_range(TILES):
        mask += ((rows + n * BB < B)[:, None] & (cols < H)[None, :],)
    state = rows[:, None].to(gl.int64) * H + cols[None, :]
    p = load_peephole(peephole, cols, H, gl.float32)

    warp, gate_of, term = indices(of_weights, WEIGHTS_LEFT, NUM_WARPS, 4 * BH, BK)
    if WEIGHTS_LEFT:
        gate_of = column_of(gate_of)
    unit, ks = gl.program_id(1) * BH + gate_of // 4, warp * PIECE + term
    w_at = weight_hh + (gate_of % 4 * H + unit) * H + ks
    weights = ()
    for k in gl.static_range(0, PIECE, BK):
        weights += (gl.load(w_at + k, (unit < H) & (ks + k < H), other=0),)

    warp, m, term = indices(of_h, not WEIGHTS_LEFT, NUM_WARPS, BB, BK)
    slot = groups.to(gl.int64) * (TILES * BB * WIDTH)
    h_at = tile * (BB * WIDTH) + place(m, warp * PIECE + term, BB, BK)
    own = exchange + (tile * (BB * WIDTH) + place(rows[:, None] - tile * BB, cols[None, :], BB, BK))

    PHASE: gl.constexpr = 2 if WEIGHTS_LEFT else 1  # rows that a thread has of its sums
    shared: gl.constexpr = gl.SwizzledSharedLayout(8, PHASE, 8 // PHASE if BH >= 16 else 4, [2, 1, 0])
    partial = gl.allocate_shared_memory(gl.float32, [NUM_WARPS, BB, 4 * BH], shared)

    b_i = gl.zeros([1, BH], gl.float32, cells)
    b_f, b_g, b_o = b_i, b_i, b_i
    if bias is not None:
        b_i, b_f, b_g, b_o = load_gates((bias + cols)[None, :], (cols < H)[None, :], H, gl.float32)
    stop, h, c = (), (), ()  # of each batch tile
    for n in gl.static_range(TILES):
        if lengths is not None:
            stop += (gl.load(lengths + rows + n * BB, rows + n * BB < B, other=0),)
        else:
            stop += (gl.full([BB], T, gl.int64, gl.SliceLayout(1, cells)),)
        h += (gl.load(h0 + state + n * (BB * H), mask[n], other=0),)
        c += (gl.load(c0 + state + n * (BB * H), mask[n], other=0).to(gl.float32),)
        publish(own + n * (BB * WIDTH), h[n])
    first_gates = gates_at(gl.to_tensor(0), T, B, rows, cols, H, REVERSE)
    x = load_gates(xw + first_gates, mask[0], H, gl.float32)
    for step in range(T):
        t = T - 1 - step if REVERSE else step
        at = t.to(gl.int64) * B * H + state
        at_gates = gates_at(step, T, B, rows, cols, H, REVERSE)
        h_next, c_next = (), ()
        for n in gl.static_range(TILES):
            x_i, x_f, x_g, x_o = x
            valid = ((t < stop[n]) & (rows + n * BB < B))[:, None]
            now = exchange + step % RING * slot + n * (BB * WIDTH)
            product = no_sums(mma, NUM_WARPS, BB, 4 * BH)
            for first_k in gl.static_range(0, len(weights), PIECES):
                h_all = gather(
                    now, h_at, timed_out, first_k, min(first_k + PIECES, len(weights)), BK, BB,
                    ONE_POINTER, BB * BK // 32, NATIVE,
                )  # fmt: skip
                for k in gl.static_range(len(h_all)):
                    product = multiply(h_all[k], weights[first_k + k], product, PRECISION)
            # A tile ahead, after the loads that poll, which would wait for these.
            if n < TILES - 1:
                x = load_gates(xw + at_gates + (n + 1) * (BB * 4 * H), mask[n + 1], H, gl.float32)
            else:
                after = gates_at(step + 1, T, B, rows, cols, H, REVERSE)
                x = load_gates(xw + after, mask[0] & (step + 1 < T), H, gl.float32)
            partial.store(by_rows(product, BB))
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
            publish(own + (step + 1) % RING * slot + n * (BB * WIDTH), h_next[n])
            if n == TILES - 1:
                # This program has gathered slot t, so all have published it and have gathered slot t - 1.
                reset_bank(own, step, 1, slot, 1, WIDTH, TILES, BB * WIDTH, NUM_WARPS)
            gl.store(y + at + n * (BB * H), gl.where(valid, h_next[n], 0.0).to(KIND), mask[n])
            if c_all is not None:
                gl.store(c_all + at + n * (BB * H), c_next[n], mask[n])
                store_gates(gates_all + at_gates + n * (BB * 4 * H), gates, valid, mask[n], H)
        h, c = h_next, c_next
    for n in gl.static_range(TILES):
        gl.store(h_n + state + n * (BB * H), h[n], mask[n])
        gl.store(c_n + state + n * (BB * H), c[n].to(c_n.dtype.element_ty), mask[n])
