"""The forward kernel of a cluster; `lstm_fused.kernels.cluster` explains the scheme."""

from lstm_fused.kernels import cell
from lstm_fused.kernels.cluster_exchange import (
    CHUNK,
    address,
    layout_staged,
    load,
    receivers,
    send,
    set_up,
    wait,
)
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.runtime.jit import constexpr_function

# The equations are the other kernels' own, compiled for explicit layouts.
cell_forward = gluon.jit(cell.cell_forward.fn)
load_gates = gluon.jit(cell.load_gates.fn)
load_peephole = gluon.jit(cell.load_peephole.fn)
store_gates = gluon.jit(cell.store_gates.fn)


@constexpr_function
def layout_of_sums(CTAS, NUM_WARPS):
    """[4 columns, BB]: each warp has 16 rows, the gates of four hidden columns."""
    cta = [[1 << n, 0] for n in range(CTAS.bit_length() - 1)]
    return gl.NVMMADistributedLayout([2, 0], [NUM_WARPS, 1], [16, 8], cta)


@constexpr_function
def layout_of_cells(CTAS, NUM_WARPS, BB, gates):
    """[BB, columns]; with ``gates`` [BB, columns, 2, 2], a thread has the four gates of its cells.

    Of these sums two lanes of a warp have two gates of two cells each, and exchange one half.
    """

    def basis(row=0, column=0, high=0, low=0):
        return [row, column, high, low] if gates else [row, column]

    numbers = [basis(low=1), basis(high=1)] if gates else []
    numbers += [basis(row=n) for n in (8, 16) if n < BB]
    lanes = [basis(row=2), basis(row=4), basis(row=1), basis(column=1), basis(column=2)]
    columns = [basis(column=4 << n) for n in range((CTAS * NUM_WARPS).bit_length() - 1)]
    warps = NUM_WARPS.bit_length() - 1
    shape = [BB, 4 * CTAS * NUM_WARPS] + ([2, 2] if gates else [])
    return gl.DistributedLinearLayout(numbers, lanes, columns[:warps], columns[warps:], shape)


@gluon.jit(do_not_specialize=["T", "B", "first"])
def lstm_forward_cluster_kernel(
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
    timed_out,  # [1], set when a wait times out
    T,
    B,
    first,  # batch tile of this launch
    H: gl.constexpr,
    REVERSE: gl.constexpr,
    PRECISION: gl.constexpr,
    BB: gl.constexpr,
    BH: gl.constexpr,  # hidden columns of a block
    BK: gl.constexpr,  # terms of a piece of the weights
    CTAS: gl.constexpr,  # blocks of the cluster
    NUM_WARPS: gl.constexpr,
):
    """The whole sequence; a program is the cluster of a batch tile."""
    KIND: gl.constexpr = h0.dtype.element_ty
    SIZE: gl.constexpr = KIND.primitive_bitwidth // 8
    WIDTH: gl.constexpr = CTAS * BH
    STEP: gl.constexpr = BB * WIDTH * SIZE  # bytes of h
    CHAINS: gl.constexpr = min(32 // BB, WIDTH // BK)  # sums that do not wait for one another
    mma: gl.constexpr = layout_of_sums(CTAS, NUM_WARPS)
    left: gl.constexpr = gl.DotOperandLayout(0, mma, CHUNK // SIZE)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, CHUNK // SIZE)
    cells: gl.constexpr = layout_of_cells(CTAS, NUM_WARPS, BB, False)

    rows = (first + gl.program_id(0)) * BB + gl.arange(0, BB, gl.SliceLayout(1, cells))
    cols = gl.arange(0, WIDTH, gl.SliceLayout(0, cells))
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    state = rows[:, None].to(gl.int64) * H + cols[None, :]
    p = load_peephole(peephole, cols, H, gl.float32)

    # Of 16 rows the first 8 are i and g of four columns, the others f and o: a thread has one row of each.
    m = gl.arange(0, 4 * WIDTH, gl.SliceLayout(1, left))[:, None]
    unit, gate = m // 16 * 4 + m % 8 // 2, m % 2 * 2 + m // 8 % 2
    ks = gl.arange(0, BK, gl.SliceLayout(0, left))[None, :]
    w_at = weight_hh + (gate * H + unit) * H + ks
    weights = ()
    for k in gl.static_range(0, WIDTH, BK):
        weights += (gl.load(w_at + k, (unit < H) & (ks + k < H), other=0),)

    staged = gl.allocate_shared_memory(KIND, [BB, WIDTH], layout_staged(CTAS, SIZE))
    place = set_up(STEP)
    there, ready = receivers(place, STEP, CTAS, NUM_WARPS, BB, BH, SIZE)
    column = gl.arange(0, BK, gl.SliceLayout(1, right))[:, None]
    row = gl.arange(0, BB, gl.SliceLayout(0, right))[None, :]
    h_at = place + address(row, column, BB, SIZE)

    b_i = gl.zeros([1, WIDTH], gl.float32, cells)
    b_f, b_g, b_o = b_i, b_i, b_i
    if bias is not None:
        b_i, b_f, b_g, b_o = load_gates((bias + cols)[None, :], (cols < H)[None, :], H, gl.float32)
    stop = gl.full([BB], T, gl.int64, gl.SliceLayout(1, cells))
    if lengths is not None:
        stop = gl.load(lengths + rows, rows < B, other=0)

    h = gl.load(h0 + state, mask, other=0)
    c = gl.load(c0 + state, mask, other=0).to(gl.float32)
    send(h, staged, there, ready, 0, STEP)
    t = gl.to_tensor(T - 1 if REVERSE else 0)
    at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
    x_i, x_f, x_g, x_o = load_gates(xw + at_gates, mask, H, gl.float32)
    for step in range(T):
        t = T - 1 - step if REVERSE else step
        at = t.to(gl.int64) * B * H + state
        at_gates = (t.to(gl.int64) * B + rows[:, None]) * (4 * H) + cols[None, :]
        valid = ((t < stop) & (rows < B))[:, None]
        a_i, a_f, a_g, a_o = x_i + b_i, x_f + b_f, x_g + b_g, x_o + b_o
        # Loaded a step early: a wait for it would come before the wait for h.
        x_at = xw + at_gates + (-4 if REVERSE else 4) * H * B.to(gl.int64)
        x_i, x_f, x_g, x_o = load_gates(x_at, mask & (step + 1 < T), H, gl.float32)
        wait(place, step, timed_out, STEP)
        chains = ()
        for _ in gl.static_range(CHAINS):
            chains += (gl.zeros([4 * WIDTH, BB], gl.float32, mma),)
        for k in gl.static_range(len(weights)):
            h_all = load(h_at + step % 2 * STEP + k * (BK * BB * SIZE), KIND)
            chains += (mma_v2(weights[k], h_all, chains[0], input_precision=PRECISION),)
            chains = chains[1:]
        total = chains[0]
        for n in gl.static_range(1, CHAINS):
            total += chains[n]
        total = gl.permute(gl.reshape(total, (WIDTH // 4, 2, 4, 2, BB)), (4, 0, 2, 3, 1))
        total = gl.reshape(total, (BB, WIDTH, 2, 2))
        even, odd = gl.split(gl.convert_layout(total, layout_of_cells(CTAS, NUM_WARPS, BB, True)))
        s_i, s_g = gl.split(even)
        s_f, s_o = gl.split(odd)
        a_i += gl.convert_layout(s_i, cells)
        a_f += gl.convert_layout(s_f, cells)
        a_g += gl.convert_layout(s_g, cells)
        a_o += gl.convert_layout(s_o, cells)

        h_t, c_t, gates = cell_forward((a_i, a_f, a_g, a_o), c, p, peephole is not None, EXACT=False)
        h = gl.where(valid, h_t.to(KIND), h)
        c = gl.where(valid, c_t, c)
        if step + 1 < T:  # after the last step the others may have ended
            send(h, staged, there, ready, step + 1, STEP)
        gl.store(y + at, gl.where(valid, h, 0.0).to(KIND), mask)
        if c_all is not None:
            gl.store(c_all + at, c, mask)
            store_gates(gates_all + at_gates, gates, valid, mask, H)
    gl.store(h_n + state, h, mask)
    gl.store(c_n + state, c.to(c_n.dtype.element_ty), mask)
