"""The cell's equations on tiles, and the loads and stores of tiles, shared by all kernels.

A tile is [BB, BH]: BB batch rows by BH hidden columns. The gates are four tiles, in the order i, f, g, o.
The equations are those of `lstm_fused.reference`.
"""

import triton
import triton.language as tl


@triton.jit
def quotient(x, y):
    """The quotient rounded to nearest; a GPU's native float32 division may be off by 2 ulp."""
    if (x + y).dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def root(x):
    """The square root, rounded to nearest."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def exp_parts(x):
    """exp(x) in float32 as s (1 + e), s a power of two, infinite from 88.4 on; below -87 x counts as -87.

    It uses additions and products only; a GPU's native exp is less exact than float32 results may be.
    """
    ROUND: tl.constexpr = 12582912.0  # 1.5 * 2^23, where neighbours lie 1 apart
    x = tl.where(x > 89, 89.0, tl.where(x < -87, -87.0, x))  # NaN stays
    shifted = x * 1.4426950408889634 + ROUND
    s = ((shifted.to(tl.int32, bitcast=True) << 23) + (127 << 23)).to(tl.float32, bitcast=True)
    n = shifted - ROUND
    r = (x - n * 0.693145751953125) - n * 1.428606820309417e-6  # ln 2; n times its first part is exact
    series = r * (1 / 7) + 1
    for k in tl.static_range(6, 1, -1):
        series = series * (r * (1 / k)) + 1
    return s, r * series


@triton.jit
def sigmoid(x, EXACT: tl.constexpr = True):
    """1 / (1 + exp(-x)); unless EXACT, with native exp and division, which is enough for half precision."""
    if EXACT and x.dtype == tl.float32:
        s, e = exp_parts(-x)
        return quotient(1, 1 + s * (1 + e))
    else:
        return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x, EXACT: tl.constexpr = True):
    """(1 - E) / (1 + E), E = exp(-2 |x|); near zero 1 - E would cancel, so it is a Taylor series there."""
    if EXACT and x.dtype == tl.float32:
        s, e = exp_parts(-2 * tl.abs(x))
        value = quotient((1 - s) - s * e, (1 + s) + s * e)
        return tl.where(x < 0, -value, value)
    else:
        TERMS: tl.constexpr = 17 if x.dtype == tl.float64 else 9
        r = -2 * tl.abs(x)
        series = r * (1 / TERMS) + 1
        for n in tl.static_range(TERMS - 1, 1, -1):
            series = series * (r * (1 / n)) + 1
        e = tl.where(r > -0.7, r * series, tl.exp(r) - 1)
        return tl.where(x < 0, e, -e) / (2 + e)


@triton.jit
def clipped(c, CLIP: tl.constexpr):
    """Clip c to [-CLIP, CLIP], unless CLIP is None; NaN stays NaN."""
    if CLIP is not None:
        c = tl.where(c > CLIP, CLIP, tl.where(c < -CLIP, -CLIP, c))
    return c


@triton.jit
def cell_forward(
    a, c_prev, p, PEEPHOLE: tl.constexpr, CLIP: tl.constexpr = None, EXACT: tl.constexpr = True
):  # fmt: skip
    """One step from the pre-activations: o * tanh(c), c, and the gates."""
    a_i, a_f, a_g, a_o = a
    p_i, p_f, p_o = p
    if PEEPHOLE:
        a_i += p_i * c_prev
        a_f += p_f * c_prev
    i = sigmoid(a_i, EXACT)
    f = sigmoid(a_f, EXACT)
    g = tanh(a_g, EXACT)
    c = clipped(f * c_prev + i * g, CLIP)
    if PEEPHOLE:
        a_o += p_o * c
    o = sigmoid(a_o, EXACT)
    return o * tanh(c, EXACT), c, (i, f, g, o)


@triton.jit
def cell_backward(
    dm, dc, gates, c, c_prev, p, PEEPHOLE: tl.constexpr, CLIP: tl.constexpr = None,
    EXACT: tl.constexpr = True,
):  # fmt: skip
    """One step back from the gradients of o * tanh(c) and of c: da of each gate, dc_prev."""
    i, f, g, o = gates
    p_i, p_f, p_o = p
    s = tanh(c, EXACT)
    da_o = dm * s * o * (1 - o)
    dc += dm * o * (1 - s * s)
    if PEEPHOLE:
        dc += p_o * da_o
    if CLIP is not None:
        dc = tl.where(tl.abs(f * c_prev + i * g) > CLIP, 0, dc)
    da_i = dc * g * i * (1 - i)
    da_f = dc * c_prev * f * (1 - f)
    da_g = dc * i * (1 - g * g)
    dc_prev = dc * f
    if PEEPHOLE:
        dc_prev += p_i * da_i + p_f * da_f
    return (da_i, da_f, da_g, da_o), dc_prev


@triton.jit
def load_peephole(peephole, cols, H: tl.constexpr, WIDE: tl.constexpr):
    """p_i, p_f, p_o of these columns, each [1, BH]; unused zeros without peepholes."""
    p_i = (cols * 0).to(WIDE)
    p_f, p_o = p_i, p_i
    if peephole is not None:
        mask = cols < H
        p_i = tl.load(peephole + cols, mask, other=0).to(WIDE)
        p_f = tl.load(peephole + H + cols, mask, other=0).to(WIDE)
        p_o = tl.load(peephole + 2 * H + cols, mask, other=0).to(WIDE)
    return p_i[None, :], p_f[None, :], p_o[None, :]


@triton.jit
def load_gates(pointers, mask, H: tl.constexpr, WIDE: tl.constexpr):
    """The tiles of the four gates, at a stride of H."""
    i = tl.load(pointers, mask, other=0).to(WIDE)
    f = tl.load(pointers + H, mask, other=0).to(WIDE)
    g = tl.load(pointers + 2 * H, mask, other=0).to(WIDE)
    o = tl.load(pointers + 3 * H, mask, other=0).to(WIDE)
    return i, f, g, o


@triton.jit
def store_gates(pointers, gates, valid, mask, H: tl.constexpr):
    """Store the tiles of the four gates at a stride of H; zeros in rows that are not valid."""
    i, f, g, o = gates
    KIND: tl.constexpr = pointers.dtype.element_ty
    tl.store(pointers, tl.where(valid, i, 0).to(KIND), mask)
    tl.store(pointers + H, tl.where(valid, f, 0).to(KIND), mask)
    tl.store(pointers + 2 * H, tl.where(valid, g, 0).to(KIND), mask)
    tl.store(pointers + 3 * H, tl.where(valid, o, 0).to(KIND), mask)


@triton.jit
def load_inputs(xw, bias, t, rows, cols, mask, B, H: tl.constexpr):
    """W_ih x_t + b of this tile: the pre-activations without the recurrent product."""
    WIDE: tl.constexpr = xw.dtype.element_ty
    i, f, g, o = load_gates(xw + offsets(t, rows, cols, B, 4 * H), mask, H, WIDE)
    if bias is not None:
        b_i, b_f, b_g, b_o = load_gates((bias + cols)[None, :], (cols < H)[None, :], H, WIDE)
        i, f, g, o = i + b_i, f + b_f, g + b_g, o + b_o
    return i, f, g, o


@triton.jit
def add_product(a, product, BB: tl.constexpr, BH: tl.constexpr):
    """Add a product [BB, 4 BH], the four gates of a hidden unit side by side, to the gates' tiles."""
    a_i, a_f, a_g, a_o = a
    even, odd = tl.split(tl.reshape(product, (BB, BH, 2, 2)))
    i, g = tl.split(even)
    f, o = tl.split(odd)
    return a_i + i, a_f + f, a_g + g, a_o + o


@triton.jit
def add_dot(left, right, total, PRECISION: tl.constexpr):
    """Total + left right, in total's dtype; in float32's own precision the terms are summed up apart first.

    Such a product is a chain of fused multiply-adds, each of which rounds the whole sum so far. In one chain,
    1044 terms have five times the error that they have in blocks of 32, and twice that of a BLAS.
    """
    if left.dtype == tl.float32 and PRECISION == "ieee":
        # With 0, the default, Triton would add the terms to total one by one; float32 ignores other numbers.
        return total + tl.dot(
            left, right, input_precision=PRECISION, max_num_imprecise_acc=1, out_dtype=total.dtype
        )
    else:
        return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def close_sum(total, part):
    """Total + part, and the zero that the next part starts from.

    That depends on the total, so that the parts are summed up one after the other. The operands of
    independent ones would be loaded all at once, into more registers than there are.
    """
    total += part
    return total, tl.minimum(tl.abs(total), 0.0)


@triton.jit
def gate_rows(column, H: tl.constexpr, BH: tl.constexpr):
    """Rows of weight_hh in that order from a first hidden column on, [4 BH], and their mask."""
    n = tl.arange(0, 4 * BH)
    unit = column + n // 4
    return n % 4 * H + unit, unit < H


@triton.jit
def valid_rows(lengths, rows, t, B):
    """The mask of rows whose sequences are longer than t, [BB, 1]; without lengths, of rows that exist."""
    if lengths is None:
        return (rows < B)[:, None]
    else:
        return (t < tl.load(lengths + rows, rows < B, other=0))[:, None]


@triton.jit
def offsets(t, rows, cols, B, WIDTH: tl.constexpr):
    """Offsets of [t, rows, cols] in a tensor [T, B, WIDTH], in 64 bits."""
    return (tl.cast(t, tl.int64) * B + rows[:, None]) * WIDTH + cols[None, :]


@triton.jit
def index(rows, NUMBERS: tl.constexpr):
    """Row or column indices of a matrix of NUMBERS elements, as wide as their products with strides need."""
    return rows.to(tl.int64 if NUMBERS >= 2**31 else tl.int32)


@triton.jit
def save_step(h, c, gates, valid, y, c_all, gates_all, t, rows, cols, mask, B, H: tl.constexpr):
    """Store one step's y, and its c and gates if the backward pass needs them."""
    if y is not None:
        tl.store(y + offsets(t, rows, cols, B, H), tl.where(valid, h, 0).to(y.dtype.element_ty), mask)
    if c_all is not None:
        tl.store(c_all + offsets(t, rows, cols, B, H), c, mask)
        store_gates(gates_all + offsets(t, rows, cols, B, 4 * H), gates, valid, mask, H)


@triton.jit
def load_or_zero(pointer, at, mask, BB: tl.constexpr, BH: tl.constexpr, WIDE: tl.constexpr):
    """Load a tile in the accumulation dtype; zeros for None."""
    if pointer is None:
        return tl.zeros((BB, BH), WIDE)
    else:
        return tl.load(pointer + at, mask, other=0).to(WIDE)


@triton.jit
def load_c_before(c_all, c0, step, t, T, rows, cols, mask, B, H: tl.constexpr, REVERSE: tl.constexpr):
    """The c before step t, which is ``step`` steps before the last one."""
    first = step == T - 1
    before = offsets(t + 1 if REVERSE else t - 1, rows, cols, B, H)
    c = tl.load(c_all + before, mask & (not first), other=0)
    return c + tl.load(c0 + offsets(0, rows, cols, B, H), mask & first, other=0).to(c.dtype)


@triton.jit
def load_saved(
    dy, c_all, c0, gates_all, step, T, rows, cols, mask, B, H: tl.constexpr, REVERSE: tl.constexpr,
    BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The backward pass's inputs ``step`` steps before the last: dy, the c before it, the gates."""
    WIDE: tl.constexpr = c_all.dtype.element_ty
    t = step if REVERSE else T - 1 - step
    dy_t = load_or_zero(dy, offsets(t, rows, cols, B, H), mask, BB, BH, WIDE)
    c = load_c_before(c_all, c0, step, t, T, rows, cols, mask, B, H, REVERSE)
    i, f, g, o = load_gates(gates_all + offsets(t, rows, cols, B, 4 * H), mask, H, WIDE)
    return dy_t, c, i, f, g, o
