"""The step kernels' arguments as a table in device memory: int64 numbers that one small launch writes.

A table holds the base step of the next launch, the number of steps, the t of the first step, the stride of t,
and then addresses, in the order of the fields of `ForwardTensors` or `BackwardTensors`. A kernel reads an
address once, from L2; declared a multiple of 16, it allows loads as wide as a pointer argument does.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class ForwardTensors(NamedTuple):
    """Tensors of a forward step; "wide" is the accumulation dtype."""

    xw: Tensor  # [T, B, 4H], wide
    weight_hh: Tensor  # [4H, P]
    bias: Tensor | None  # [4H]
    peephole: Tensor | None  # [3, H]
    lengths: Tensor | None  # [B]
    h: Tensor  # [B, P]; without a projection h and h_next are a double buffer, and so are adjacent
    h_next: Tensor  # [B, H]; with a projection o * tanh(c), zero past the lengths
    c_state: Tensor  # [B, H], wide, read and written
    y: Tensor  # [T, B, P]
    c_all: Tensor | None  # [T, B, H], wide
    gates_all: Tensor | None  # [T, B, 4H]
    hw: Tensor | None = None  # [B, 4H], wide: with layer norm W_hh h_{t-1}
    gain_hh: Tensor | None = None  # [4H]
    h_mask: Tensor | None = None  # [B, P]
    zoneout_h: Tensor | None = None  # [T, B, P], or SHARED [P]
    zoneout_c: Tensor | None = None  # [T, B, H], or SHARED [H]
    weight_hr: Tensor | None = None  # [P, H]


class BackwardTensors(NamedTuple):
    """Tensors of a backward step; "wide" is the accumulation dtype."""

    dy: Tensor | None  # [T, B, P]
    dhw: Tensor  # [T, B, 4H]: the gradient of W_hh h_{t-1}; without layer norm dxw itself
    weight_hh: Tensor  # [4H, P]
    dh_state: Tensor  # [B, P], wide, read and written
    dc_state: Tensor  # [B, H], wide, read and written
    c_all: Tensor  # [T, B, H], wide
    c0: Tensor  # [B, H]
    gates_all: Tensor  # [T, B, 4H]
    peephole: Tensor | None  # [3, H]
    lengths: Tensor | None  # [B]
    dxw: Tensor  # [T, B, 4H]
    h_mask: Tensor | None = None  # [B, P]
    zoneout_h: Tensor | None = None  # [T, B, P], or SHARED [P]
    kept: Tensor | None = None  # [B, P], wide: the part of dh that skips the cell, read and written
    zoneout_c: Tensor | None = None  # [T, B, H], or SHARED [H]
    weight_hr: Tensor | None = None  # [P, H]
    dh_t: Tensor | None = None  # [B, P]: the gradient of the projected h
    hw: Tensor | None = None  # [T, B, 4H], wide
    gain_hh: Tensor | None = None  # [4H]


class Slots(tl.constexpr):
    """The positions of a record's fields, by name; a constexpr, so that compiled code depends on them."""

    def __init__(self, record: Any) -> None:
        super().__init__(record(*range(len(record._fields))))
        self.__dict__ |= self.value._asdict()  # for the interpreter; the compiler reads fields of the value


FORWARD, BACKWARD = Slots(ForwardTensors), Slots(BackwardTensors)
HEAD = tl.constexpr(4)  # numbers before the addresses
ADDRESSES = max(len(record._fields) for record in (ForwardTensors, BackwardTensors))
NUMBERS = HEAD.value + ADDRESSES


@triton.jit(do_not_specialize=list(range(1, NUMBERS)))
def lstm_table_kernel(
    table, steps: tl.int64, first: tl.int64, stride: tl.int64,
    a0: tl.int64, a1: tl.int64, a2: tl.int64, a3: tl.int64, a4: tl.int64, a5: tl.int64, a6: tl.int64,
    a7: tl.int64, a8: tl.int64, a9: tl.int64, a10: tl.int64, a11: tl.int64, a12: tl.int64, a13: tl.int64,
    a14: tl.int64, a15: tl.int64, a16: tl.int64, a17: tl.int64, a18: tl.int64,
):  # fmt: skip
    """Fill a table from scalar arguments, which a launch copies."""
    head = (0, steps, first, stride)
    addresses = (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18)
    numbers = head + addresses
    for n in tl.static_range(len(numbers)):
        tl.store(table + n, numbers[n])


@triton.jit(do_not_specialize=["steps"])
def lstm_advance_kernel(table, steps):
    """Advance the base step of the next launches."""
    tl.store(table, tl.load(table) + steps)


@triton.jit
def time_of(table, step):
    """The t of a step in the order of this pass, or -1 if there is no such step."""
    steps, first, stride = tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
    return tl.where((step >= 0) & (step < steps), first + step * stride, -1).to(tl.int32)


@triton.jit
def pointer(table, n, KINDS: tl.constexpr, ALIGNED: tl.constexpr):
    """The n-th address, of a tensor of the n-th dtype; None if there is no tensor."""
    if KINDS[n] is None:
        found = None
    else:
        found = tl.load(table + HEAD + n).to(tl.pointer_type(KINDS[n]))
        if ALIGNED:
            found = tl.multiple_of(found, 16)
    return found


@triton.jit
def double_buffered(table, step, n, KINDS: tl.constexpr, ALIGNED: tl.constexpr):
    """The n-th address in even steps, the next one in odd steps: a double buffer. Both loads overlap."""
    even, odd = tl.load(table + HEAD + n), tl.load(table + (HEAD + 1) + n)
    found = tl.where(step % 2 == 0, even, odd).to(tl.pointer_type(KINDS[n]))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def may_read_table(node, PDL: tl.constexpr):
    """With programmatic dependent launch: the first launch waits for the one that filled the table."""
    if PDL:  # noqa: SIM102, decided by the compiler alone
        if node == 0:
            tl.extra.cuda.gdc_wait()


@triton.jit
def wait_for_step_before(PDL: tl.constexpr):
    """With programmatic dependent launch: wait for the launch before, then let the next one begin.

    In this order, so that when a launch begins all but the one before it have ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
