"""The cooperative kernels: a program owns BB batch rows by BH hidden columns for the whole sequence.

Its slice of the recurrent weights stays in shared memory or registers. After each step the programs that
share batch rows exchange h (backward: da) through L2: each stores its tile, arrives at a counter with
release, and waits with acquire until all have arrived. So all of them must be resident on the card at once; a
cooperative launch fails otherwise. A batch that does not fit takes one launch for each wave of batch tiles.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from lstm_fused.kernels import launcher
from lstm_fused.kernels.cell import (
    add_product,
    cell_backward,
    cell_forward,
    close_sum,
    gate_rows,
    load_inputs,
    load_or_zero,
    load_peephole,
    load_saved,
    offsets,
    save_step,
    store_gates,
    valid_rows,
)
from lstm_fused.kernels.launcher import BEFORE_3_8
from lstm_fused.kernels.plan import (
    FLOAT64_BY_FMA,
    LIKE_SM_89,
    MAX_REGISTERS,
    Card,
    Kernel,
    Layer,
    Plan,
    Sizes,
    Tensors,
)
from lstm_fused.kernels.scratch import timeout_flag, zero_counters
from lstm_fused.kernels.sums import add_step, finish

POLLS = tl.constexpr(1 << 20)  # after which a wait times out: about a second


@triton.jit
def arrive(arrived):
    """Signal that the stores of all threads are done; no compiler adds the barrier that this needs."""
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release")


@triton.jit
def wait(arrived, count, polls, timed_out):
    """Wait for ``count`` arrivals, after which the stores that preceded them can be loaded.

    After ``polls`` polls the wait times out and sets the flag. Returns the polls of the next wait.
    """
    seen = tl.atomic_add(arrived, 0, sem="acquire")
    left = polls
    while (seen < count) & (left > 0):
        seen = tl.atomic_add(arrived, 0, sem="acquire")
        left -= 1
    if seen < count:
        tl.store(timed_out, 1)
        polls = 0
    return polls


@triton.jit
def sum_of_gates(product, BB: tl.constexpr, BH: tl.constexpr):
    """[4, BB, BH] to [BB, BH]; after tl.sum all tiles would need layout conversions to be stored."""
    even, odd = tl.split(tl.reshape(tl.permute(product, (1, 2, 0)), (BB, BH, 2, 2)))
    i, g = tl.split(even)
    f, o = tl.split(odd)
    return (i + f) + (g + o)


@triton.jit(do_not_specialize=["T", "B", "first"])
def lstm_forward_cooperative_kernel(
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
    exchange,  # [2, B, H], h before and after a step, double-buffered
    arrived,  # [batch tiles], zeros
    timed_out,  # [1], set when a wait times out
    T,
    B,
    first,  # batch tile of this launch
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """The whole sequence; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = xw.dtype.element_ty
    EXACT: tl.constexpr = weight_hh.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    tile = first + tl.program_id(0)
    rows = tile * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, mask = (rows < B)[:, None], (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    p = load_peephole(peephole, cols, H, WIDE)
    arrived += tile

    w_rows, w_mask = gate_rows(tl.program_id(1) * BH, H, BH)
    weights = ()
    for k in tl.static_range(0, H, BK):
        ks = k + tl.arange(0, BK)
        w = tl.load(
            weight_hh + w_rows[None, :] * H + ks[:, None], w_mask[None, :] & (ks < H)[:, None], other=0
        )
        weights += (w,)

    h = tl.load(h0 + state, mask, other=0)
    c = tl.load(c0 + state, mask, other=0).to(WIDE)
    tl.store(exchange + state, h, mask)
    arrive(arrived)
    polls = tl.full((), POLLS, tl.int32)
    for step in range(T):
        t = T - 1 - step if REVERSE else step
        a = load_inputs(xw, bias, t, rows, cols, mask, B, H)
        valid = valid_rows(lengths, rows, t, B)
        polls = wait(arrived, (step + 1) * tl.num_programs(1), polls, timed_out)

        # All loads come before the first product, so that their latencies overlap.
        h_all = ()
        for k in tl.static_range(0, H, BK):
            ks = k + tl.arange(0, BK)
            at = offsets(step % 2, rows, ks, B, H)
            h_all += (tl.load(exchange + at, row_mask & (ks < H)[None, :], other=0, cache_modifier=".cg"),)
        product, total = tl.zeros((BB, 4 * BH), WIDE), tl.zeros((BB, 4 * BH), WIDE)
        for k in tl.static_range(len(weights)):
            product = tl.dot(h_all[k], weights[k], product, input_precision=PRECISION, out_dtype=WIDE)
            if EXACT:
                total, product = close_sum(total, product)
        if EXACT:
            product = total

        m, c_t, gates = cell_forward(add_product(a, product, BB, BH), c, p, peephole is not None, EXACT=EXACT)
        h = tl.where(valid, m.to(h.dtype), h)
        c = tl.where(valid, c_t, c)
        # This overwrites the h that all programs loaded one step ago: since then this program has waited for
        # their arrivals, and each arrived after it had used what it loaded.
        tl.store(exchange + offsets((step + 1) % 2, rows, cols, B, H), h, mask)
        arrive(arrived)
        save_step(h, c, gates, valid, y, c_all, gates_all, t, rows, cols, mask, B, H)
    tl.store(h_n + state, h, mask)
    tl.store(c_n + state, c.to(c_n.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["T", "B", "tiles", "first"])
def lstm_backward_cooperative_kernel(
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
    counters,  # [batch tiles + hidden tiles], zeros
    timed_out,  # [1], set when a wait times out
    T,
    B,
    first,  # batch tile of this launch
    tiles,  # in all launches
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """The whole sequence, from its last step to its first; programs [batch tile, hidden tile]."""
    WIDE: tl.constexpr = c_all.dtype.element_ty
    EXACT: tl.constexpr = weight_hh.dtype.element_ty == tl.float32 and PRECISION == "ieee"
    KIND: tl.constexpr = dxw.dtype.element_ty
    tile = first + tl.program_id(0)
    rows = tile * BB + tl.arange(0, BB)
    cols = tl.program_id(1) * BH + tl.arange(0, BH)
    row_mask, mask = (rows < B)[:, None], (rows < B)[:, None] & (cols < H)[None, :]
    state = offsets(0, rows, cols, B, H)
    p = load_peephole(peephole, cols, H, WIDE)
    arrived = counters + tile

    # The gates are the batch dimension of this product, so that each warp multiplies by one gate.
    gate_starts = (tl.arange(0, 4) * H)[:, None, None]
    weights = ()
    for k in tl.static_range(0, H, BK):
        ks = k + tl.arange(0, BK)
        w_at = (gate_starts + ks[None, :, None]) * H + cols[None, None, :]
        weights += (
            tl.load(weight_hh + w_at, ((ks < H)[:, None] & (cols < H)[None, :])[None, :, :], other=0),
        )

    dh = load_or_zero(dh_n, state, mask, BB, BH, WIDE)
    dc = load_or_zero(dc_n, state, mask, BB, BH, WIDE)
    t = 0 if REVERSE else T - 1
    c = tl.load(c_all + offsets(t, rows, cols, B, H), mask, other=0)
    dy_t, c_prev, i, f, g, o = load_saved(
        dy, c_all, c0, gates_all, 0, T, rows, cols, mask, B, H, REVERSE, BB, BH
    )
    zero = tl.zeros((BB, BH), WIDE)
    sums = (zero, zero, zero, zero, zero, zero, zero)
    polls = tl.full((), POLLS, tl.int32)
    for step in range(T):
        t = step if REVERSE else T - 1 - step
        valid = valid_rows(lengths, rows, t, B)
        gates = (i, f, g, o)
        da, dc_prev = cell_backward(dh + dy_t, dc, gates, c, c_prev, p, peephole is not None, EXACT=EXACT)
        store_gates(dxw + offsets(t, rows, cols, B, 4 * H), da, valid, mask, H)
        arrive(arrived)
        sums = add_step(sums, da, valid, c, c_prev, peephole is not None)
        dc = tl.where(valid, dc_prev, dc)
        c = c_prev
        # The loads of the next step overlap with the wait of this one.
        dy_t, c_prev, i, f, g, o = load_saved(
            dy, c_all, c0, gates_all, step + 1, T, rows, cols, mask & (step + 1 < T), B, H, REVERSE, BB, BH
        )
        polls = wait(arrived, (step + 1) * tl.num_programs(1), polls, timed_out)

        product, total = tl.zeros((4, BB, BH), WIDE), tl.zeros((4, BB, BH), WIDE)
        for k in tl.static_range(len(weights)):
            ks = k * BK + tl.arange(0, BK)
            at = offsets(t, rows, ks, B, 4 * H)[None, :, :] + gate_starts
            da_all = tl.load(
                dxw + at, (row_mask & (ks < H)[None, :])[None, :, :], other=0, cache_modifier=".cg"
            )
            product = tl.dot(da_all, weights[k], product, input_precision=PRECISION, out_dtype=WIDE)
            if EXACT:
                total, product = close_sum(total, product)
        if EXACT:
            product = total
        dh = tl.where(valid, sum_of_gates(product, BB, BH), dh)
    tl.store(dh0 + state, dh.to(KIND), mask)
    tl.store(dc0 + state, dc.to(KIND), mask)
    finish(sums, partials, counters + tiles + tl.program_id(1), dbias, dpeephole, tile, tiles, cols, H)


# Up to this H the kernels are faster than the step kernel even if the batch takes two launches
# (bench/roofline.py).
TWO_LAUNCHES = {"forward": 1024, "backward": 512}


def plans(layer: Layer) -> Iterator[Plan]:
    """The tiles, the fastest first."""
    own_products = layer.dtype == torch.float32 and layer.precision == "ieee"  # not on tensor cores
    tight = own_products or (layer.direction == "backward" and layer.H > 768)
    maxnreg = MAX_REGISTERS if tight else None
    # Each block is one chain of float32's own multiply-adds. In a chain of 1024 terms a sum has 3.6 times the
    # error that it has in chains of 64, which is a BLAS's.
    BK = 64 if own_products else 128
    for BB, BH in product((16, 32, 64), (8, 16)):
        yield Plan("cooperative", layer.precision, BB, BH, BK, 4, maxnreg=maxnreg)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Reasons why a plan cannot run a layer on a card."""
    reasons = []
    if layer.H > 1024:
        reasons.append("takes H up to 1024")
    if plan.BH < 16 and card.capability.startswith("gfx"):
        reasons.append("has no matrix instruction as narrow as that")
    backward, H, BB, BH = layer.direction == "backward", layer.H, plan.BB, plan.BH
    half, double = layer.dtype.itemsize == 2, layer.dtype == torch.float64
    if double and card.capability in FLOAT64_BY_FMA:
        reasons.append("takes float64 products that tensor cores form")
    spills = (
        (backward and (BB > 16 or (BH > 8 and (double or H > 128))))
        or (backward and H > 768 and (BEFORE_3_8 or not half))
        or (half and H > 512 and (BB > 32 or card.capability == "sm_100"))
        or (double and (H > 256 or (H > 128 and BB * BH > 128)))
        or (card.capability == "sm_80" and not half and H > 256 and BB + BH > 24)
        or (card.capability == "sm_80" and double and not backward and H > 64 and BB * BH > 512)
        or (card.capability == "sm_80" and layer.dtype == torch.float32 and backward and H <= 64 and BH > 8)
        or (card.capability in LIKE_SM_89 and half and not backward and H > 384 and (BB, BH) == (16, 16))
        or (card.capability in LIKE_SM_89 and half and backward and 512 < H <= 768)
    )
    if spills:
        reasons.append("would spill registers")
    return reasons


def shared(plan: Plan, layer: Layer) -> int:
    """Bytes of shared memory: the weights and one operand of the product."""
    size, K = layer.dtype.itemsize, -(-layer.H // plan.BK) * plan.BK
    if layer.direction == "forward":
        return (4 * plan.BH + plan.BB) * K * size + (2 << 10)
    return 4 * (K * plan.BH + plan.BB * max(plan.BK, plan.BH)) * size + (2 << 10)


def forward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the forward kernel, once for each wave of batch tiles."""
    T, B, H = sizes
    y = tensors[9]
    rows, columns = plan.grid(B, H)
    tensors += (y.new_empty(2, B, H), zero_counters(y, rows), timeout_flag(y))
    for first, tiles in plan.waves(rows):
        kernel = lstm_forward_cooperative_kernel
        launcher.launch(plan, kernel, (tiles, columns), tensors, (T, B, first), (H, reverse))


def backward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the backward kernel, once for each wave of batch tiles."""
    T, B, H = sizes
    c = tensors[3]
    rows, columns = plan.grid(B, H)
    tensors += (zero_counters(c, rows + columns), timeout_flag(c))
    for first, tiles in plan.waves(rows):
        kernel = lstm_backward_cooperative_kernel
        launcher.launch(plan, kernel, (tiles, columns), tensors, (T, B, first, rows), (H, reverse))


KERNEL = Kernel(
    plans=plans,
    function=lambda direction: globals()[f"lstm_{direction}_cooperative_kernel"],
    constants=("BK",),
    why_not=why_not,
    shared=shared,
    longest=lambda layer, shortest: 2 if TWO_LAUNCHES[layer.direction] >= layer.H else 1,
    forward=forward,
    backward=backward,
)
