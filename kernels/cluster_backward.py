"""The backward kernel of a cluster; `lstm_fused.kernels.cluster` explains the scheme."""

from lstm_fused.kernels import cell, sums
from lstm_fused.kernels.cluster_exchange import (
    CHUNK,
    add_up,
    address,
    in_block,
    layout_staged,
    load,
    partial,
    post,
    set_up,
    stage,
    wait,
)
from lstm_fused.kernels.persistent_backward import load_saved, widened
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.runtime.jit import constexpr_function

# The equations and the sums are the other kernels' own, compiled for explicit layouts.
cell_backward = gluon.jit(cell.cell_backward.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)
add_step = gluon.jit(sums.add_step.fn)
store_sums = gluon.jit(sums.store.fn)
add_tiles = gluon.jit(sums.add_tiles.fn)


@constexpr_function
def layout_of_cells(CTAS, NUM_WARPS, BB):
    """[BB, columns]: a warp has 2 rows of 16 columns, as `partial` has them side by side."""
    numbers = [[8, 0]] if BB > 8 else []
    lanes = [[0, 1], [0, 2], [0, 4], [0, 8], [1, 0]]
    warps = [[2, 0], [4, 0], [0, 16]][: NUM_WARPS.bit_length() - 1]
    cta = [[0, 4 * NUM_WARPS << n] for n in range(CTAS.bit_length() - 1)]
    return gl.DistributedLinearLayout(numbers, lanes, warps, cta, [BB, 4 * CTAS * NUM_WARPS])


@constexpr_function
def by_block(CTAS):
    """How the first axis of a tensor [block, ...] is spread over the blocks of the cluster."""
    return [[1 << n, 0, 0] for n in range(CTAS.bit_length() - 1)]


@constexpr_function
def layout_of_sums(CTAS, NUM_WARPS):
    """[block, columns, BB]: each warp has 16 columns at a time."""
    return gl.NVMMADistributedLayout([2, 0], [1, NUM_WARPS, 1], [1, 16, 8], by_block(CTAS))


@constexpr_function
def layout_by_columns(CTAS, NUM_WARPS, rows):
    """[rows, columns]: a thread has all rows of a column."""
    cta = [[0, 1 << n] for n in range(CTAS.bit_length() - 1)]
    return gl.BlockedLayout([rows, 1], [1, 32], [1, NUM_WARPS], [0, 1], cta)


@constexpr_function
def layout_of_blocks(CTAS, NUM_WARPS):
    """[block, columns]."""
    cta = [basis[:2] for basis in by_block(CTAS)]
    return gl.BlockedLayout([1, 1], [1, 32], [1, NUM_WARPS], [1, 0], cta)


@constexpr_function
def layout_of_weights(CTAS, NUM_WARPS, SIZE):
    """[block, columns, terms]: of each pair of columns a thread has one as row n of its sums, one as n + 8.

    So it loads them together, although a row of the product is a column of the weights in memory.
    """
    terms, width = CHUNK.value // SIZE, 4 * CTAS * NUM_WARPS  # terms of a thread
    numbers = [[0, 1, 0]] + [[0, 0, n] for n in (1, 2, 4) if n < terms]
    numbers += [[0, n, 0] for n in (64, 128, 256) if 16 * NUM_WARPS <= n < width]
    lanes = [[0, 0, terms], [0, 0, 2 * terms], [0, 2, 0], [0, 4, 0], [0, 8, 0]]
    warps = [[0, 16 << n, 0] for n in range(NUM_WARPS.bit_length() - 1)]
    return gl.DistributedLinearLayout(numbers, lanes, warps, by_block(CTAS), [CTAS, width, 4 * terms])


@gluon.jit(do_not_specialize=["T", "B", "first", "tiles"])
def lstm_backward_cluster_kernel(
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
    partials,  # [tiles, 7, H], float32
    counters,  # [CTAS], zeros
    timed_out,  # [1], set when a wait times out
    T,
    B,
    first,  # batch tile of this launch
    tiles,  # in all launches
    H: gl.constexpr,
    REVERSE: gl.constexpr,
    PRECISION: gl.constexpr,
    BB: gl.constexpr,
    BH: gl.constexpr,  # hidden columns of a block
    BK: gl.constexpr,  # terms of a piece of the weights
    CTAS: gl.constexpr,  # blocks of the cluster
    NUM_WARPS: gl.constexpr,
):
    """The whole sequence, from its last step to its first; a program is the cluster of a batch tile."""
    KIND: gl.constexpr = dxw.dtype.element_ty
    SIZE: gl.constexpr = KIND.primitive_bitwidth // 8
    WIDTH: gl.constexpr = CTAS * BH
    STEP: gl.constexpr = BB * WIDTH * 4  # bytes of partial sums, float32
    TERMS: gl.constexpr = BB * 4 * BH * SIZE  # bytes of da of a block
    mma: gl.constexpr = layout_of_sums(CTAS, NUM_WARPS)
    left: gl.constexpr = gl.DotOperandLayout(0, mma, CHUNK // SIZE)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, CHUNK // SIZE)
    cells: gl.constexpr = layout_of_cells(CTAS, NUM_WARPS, BB)

    tile = first + gl.program_id(0)
    rows = tile * BB + gl.arange(0, BB, gl.SliceLayout(1, cells))
    cols = gl.arange(0, WIDTH, gl.SliceLayout(0, cells))
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    state = rows[:, None].to(gl.int64) * H + cols[None, :]
    p = load_peephole(peephole, cols, H, gl.float32)

    # The terms of a block are the gates of its hidden columns, side by side.
    loaded: gl.constexpr = layout_of_weights(CTAS, NUM_WARPS, SIZE)
    block = gl.arange(0, CTAS, gl.SliceLayout(1, gl.SliceLayout(2, loaded)))[:, None, None]
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, gl.SliceLayout(2, loaded)))[None, :, None]
    ks = gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(1, loaded)))[None, None, :]
    unit = block * BH + ks // 4
    w_at = weight_hh + (ks % 4 * H + unit) * H + column
    weights = ()
    for k in gl.static_range(0, 4 * BH, BK):
        piece = gl.load(w_at + k // 4 * H, (unit + k // 4 < H) & (column < H), other=0)
        piece = gl.permute(gl.reshape(piece, (CTAS, WIDTH // 16, 8, 2, BK)), (0, 1, 3, 2, 4))
        weights += (gl.convert_layout(gl.reshape(piece, (CTAS, WIDTH, BK)), left),)

    # Where this block's partial sums go, where it receives those of all, and where it has its own da.
    place = set_up(STEP, 2 * TERMS)
    sender = gl.arange(0, CTAS, gl.SliceLayout(1, gl.SliceLayout(2, mma)))[:, None, None]
    sent = gl.arange(0, WIDTH, gl.SliceLayout(0, gl.SliceLayout(2, mma)))[None, :, None]
    row = gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(1, mma)))[None, None, :]
    sent = sent // 16 * 16 + sent % 8 * 2 + sent % 16 // 8
    there, ready = in_block(place, partial(sender, row, sent, BB, BH), sent // BH, STEP)
    row = gl.arange(0, BB, gl.SliceLayout(1, cells))[:, None]
    received = place + partial(0, row, cols[None, :], BB, BH)
    staged = place + (2 * STEP + 16)
    own = staged + address(row, cols[None, :] % BH * 4, BB, SIZE)
    term = gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(2, right)))[None, :, None]
    row = gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(1, right)))[None, None, :]
    block = gl.arange(0, CTAS, gl.SliceLayout(1, gl.SliceLayout(2, right)))[:, None, None]
    staged = staged + address(row, term, BB, SIZE) + block * 0

    zero = gl.zeros([BB, WIDTH], gl.float32, cells)
    stop = gl.full([BB], T, gl.int64, gl.SliceLayout(1, cells))
    if lengths is not None:
        stop = gl.load(lengths + rows, rows < B, other=0)
    dh, dc = zero, zero
    if dh_n is not None:
        dh = gl.load(dh_n + state, mask, other=0).to(gl.float32)
    if dc_n is not None:
        dc = gl.load(dc_n + state, mask, other=0).to(gl.float32)
    last = gl.to_tensor(0 if REVERSE else T - 1)
    c = gl.load(c_all + (last.to(gl.int64) * B * H + state), mask, other=0)
    c_first = gl.load(c0 + state, mask, other=0).to(gl.float32)
    saved = load_saved(dy, c_all, gates_all, gl.to_tensor(0), T, B, rows, cols, mask, H, REVERSE, 0)
    saved = widened(saved, c_first, T == 1)
    total = (zero, zero, zero, zero, zero, zero, zero)
    for step in range(T):
        t = step if REVERSE else T - 1 - step
        valid = ((t < stop) & (rows < B))[:, None]
        dy_t, c_prev, gates = saved
        da, dc_prev = cell_backward(dh + dy_t, dc, gates, c, c_prev, p, peephole is not None, EXACT=False)
        stage(own + step % 2 * TERMS, da, KIND)
        product = gl.zeros([CTAS, WIDTH, BB], gl.float32, mma)
        for k in gl.static_range(len(weights)):
            factor = load(staged + step % 2 * TERMS + k * (BK * BB * SIZE), KIND)
            product = mma_v2(weights[k], factor, product, input_precision=PRECISION)
        post(product, there, ready, step, STEP)

        # While the sums are on their way.
        at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
        store_gates(dxw + at_gates, da, valid, mask, H)
        total = add_step(total, da, valid, c, c_prev, peephole is not None)
        dc = gl.where(valid, dc_prev, dc)
        c = c_prev
        # They arrive while the sums are on their way, so their dtype is converted here.
        saved = load_saved(
            dy, c_all, gates_all, step + 1, T, B, rows, cols, mask & (step + 1 < T), H, REVERSE, 0
        )
        saved = widened(saved, c_first, step + 2 == T)
        wait(place, step, timed_out, STEP)
        dh = gl.where(valid, add_up(received + step % 2 * STEP, CTAS, BB * BH * 4), dh)
    gl.store(dh0 + state, dh.to(KIND), mask)
    gl.store(dc0 + state, dc.to(KIND), mask)

    # The sums over the rows; then, of each block, the last cluster to finish adds up those of all.
    by_columns: gl.constexpr = layout_by_columns(CTAS, NUM_WARPS, BB)
    turned = gl.allocate_shared_memory(gl.float32, [BB, WIDTH], layout_staged(CTAS, 4))
    cols = gl.arange(0, WIDTH, gl.SliceLayout(0, by_columns))
    of_columns = ()
    for n in gl.static_range(len(total)):
        turned.store(total[n])
        of_columns += (turned.load(by_columns),)
    store_sums(of_columns, partials, tile, cols, H)
    of_blocks: gl.constexpr = layout_of_blocks(CTAS, NUM_WARPS)
    block = gl.arange(0, CTAS, gl.SliceLayout(1, of_blocks))
    is_last = gl.atomic_add(counters + block, gl.full_like(block, 1), sem="acq_rel") == tiles - 1
    cols = block[:, None] * BH + gl.arange(0, BH, gl.SliceLayout(0, of_blocks))[None, :]
    add_tiles(partials, dbias, dpeephole, tiles, cols, (cols < H) & is_last[:, None], H)
