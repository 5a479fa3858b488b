"""The product of a persistent kernel, h or da by the weights, whose terms are split over the warps.

A matrix instruction forms 16 x 8 numbers. A batch tile of 16 rows or more is its left operand. One of 8 rows
is its right operand, and 16 columns of the weights are its rows: a thread has rows n and n + 8 of the sums,
which are two neighbouring columns.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.runtime.jit import constexpr_function


@constexpr_function
def weights_left(BB):
    """Whether the weights are the left operand."""
    return BB < 16


@constexpr_function
def layout_of_columns(NUM_WARPS, N, BK):
    """[warp, column, term]: what a thread has of a left operand, with its two columns side by side."""
    width = BK // 8  # terms of a thread, contiguous
    terms = [[0, 0, 1 << n] for n in range(BK.bit_length() - 1)]
    inner, across, outer = terms[: width.bit_length() - 1], terms[-3:-1], terms[-1:]
    columns = [[0, 1 << n, 0] for n in range(N.bit_length() - 1)]
    warps = [[1 << n, 0, 0] for n in range(NUM_WARPS.bit_length() - 1)]
    numbers = columns[:1] + inner + outer + columns[4:]
    return gl.DistributedLinearLayout(numbers, across + columns[1:4], warps, [], [NUM_WARPS, N, BK])


@gluon.jit
def left_operand(piece, of: gl.constexpr):
    """A piece of the weights, loaded by `layout_of_columns`, as a left operand."""
    W: gl.constexpr = piece.shape[0]
    N: gl.constexpr = piece.shape[1]
    BK: gl.constexpr = piece.shape[2]
    piece = gl.permute(gl.reshape(piece, (W, N // 16, 8, 2, BK)), (0, 1, 3, 2, 4))
    return gl.convert_layout(gl.reshape(piece, (W, N, BK)), of)


@gluon.jit
def column_of(row):
    """The column of the weights that is a row of a left operand."""
    return row // 16 * 16 + row % 8 * 2 + row % 16 // 8


@gluon.jit
def indices(of: gl.constexpr, LEFT: gl.constexpr, NUM_WARPS: gl.constexpr, N: gl.constexpr, BK: gl.constexpr):
    """Indices of an operand's numbers: its warp; its row, of a right operand its column; its term."""
    warp = gl.arange(0, NUM_WARPS, gl.SliceLayout(1, gl.SliceLayout(2, of)))[:, None, None]
    if LEFT:  # [warp, row, term]
        row = gl.arange(0, N, gl.SliceLayout(0, gl.SliceLayout(2, of)))[None, :, None]
        term = gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(1, of)))[None, None, :]
    else:  # [warp, term, column]
        row = gl.arange(0, N, gl.SliceLayout(0, gl.SliceLayout(1, of)))[None, None, :]
        term = gl.arange(0, BK, gl.SliceLayout(0, gl.SliceLayout(2, of)))[None, :, None]
    return warp, row, term


@gluon.jit
def no_sums(mma: gl.constexpr, NUM_WARPS: gl.constexpr, BB: gl.constexpr, N: gl.constexpr):
    """Zeros for the sums of BB rows by N columns."""
    SHAPE: gl.constexpr = [NUM_WARPS, N, BB] if weights_left(BB) else [NUM_WARPS, BB, N]
    return gl.zeros(SHAPE, gl.float32, mma)


@gluon.jit
def multiply(rows, weights, sums, PRECISION: gl.constexpr):
    """Add the product of a piece's terms to the sums of each warp."""
    if rows.type.layout.operand_index == 0:
        sums = mma_v2(rows, weights, sums, input_precision=PRECISION)
    else:
        sums = mma_v2(weights, rows, sums, input_precision=PRECISION)
    return sums


@gluon.jit
def by_rows(sums, BB: gl.constexpr):
    """The sums as [warp, BB, columns]."""
    if weights_left(BB):
        W: gl.constexpr = sums.shape[0]
        N: gl.constexpr = sums.shape[1]
        sums = gl.permute(gl.reshape(sums, (W, N // 16, 2, 8, BB)), (0, 4, 1, 3, 2))
        sums = gl.reshape(sums, (W, BB, N))
    return sums
