"""The backward pass's sums over all steps and rows, added up in a fixed order.

Seven sums: da of each gate (the gradient of the bias), and da_i c_{t-1}, da_f c_{t-1}, da_o c_t (the gradient
of the peepholes). Each program stores the sums over its own rows. The last program to finish, of those that
share columns, adds them up from the first batch tile to the last, so the result does not depend on which
program that is.
"""

import triton
import triton.language as tl


@triton.jit
def add_step(sums, da, valid, c, c_prev, PEEPHOLE: tl.constexpr):
    """Add one step's terms to the sums, each [BB, BH]."""
    b_i, b_f, b_g, b_o, p_i, p_f, p_o = sums
    da_i, da_f, da_g, da_o = da
    da_i, da_f = tl.where(valid, da_i, 0), tl.where(valid, da_f, 0)
    da_g, da_o = tl.where(valid, da_g, 0), tl.where(valid, da_o, 0)
    if PEEPHOLE:
        p_i += da_i * c_prev
        p_f += da_f * c_prev
        p_o += da_o * c
    return b_i + da_i, b_f + da_f, b_g + da_g, b_o + da_o, p_i, p_f, p_o


@triton.jit
def finish(sums, partials, finished, dbias, dpeephole, tile, tiles, cols, H: tl.constexpr):
    """Store the sums over this program's rows; the last of ``tiles`` programs adds up those of all."""
    store(sums, partials, tile, cols, H)
    if tl.atomic_add(finished, 1, sem="acq_rel") == tiles - 1:
        add_tiles(partials, dbias, dpeephole, tiles, cols, cols < H, H)


@triton.jit
def store(sums, partials, tile, cols, H: tl.constexpr):
    """Store the sums over this program's rows, for the program that finishes last."""
    mask = cols < H
    for n in tl.static_range(7):
        tl.store(partials + (tile * 7 + n) * H + cols, tl.sum(sums[n], 0), mask)
    tl.debug_barrier()


@triton.jit
def add_tiles(partials, dbias, dpeephole, tiles, cols, mask, H: tl.constexpr):
    """Add up the sums of all batch tiles, from the first to the last."""
    KIND: tl.constexpr = dbias.dtype.element_ty
    for n in tl.static_range(7):
        total = (cols * 0).to(partials.dtype.element_ty)
        for other in range(tiles):
            part = partials + (other * 7 + n) * H + cols
            total += tl.load(part, mask, other=0, cache_modifier=".cg")
        if n < 4:
            tl.store(dbias + n * H + cols, total.to(KIND), mask)
        else:
            tl.store(dpeephole + (n - 4) * H + cols, total.to(KIND), mask)
