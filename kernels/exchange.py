"""The exchange of h (backward: da) between programs: a ring buffer in L2, every number its own ready flag.

A slot of the ring holds one step. A number whose bits are all ones is not published yet, so a consumer polls
the very numbers that it needs: it loads them with ld.relaxed until none is all ones. A producer publishes
with st.relaxed. There is no counter, no barrier and, but for one in `BANK` steps, no fence; the usual scheme
(store, barrier, arrive with release, wait with acquire, load) takes more trips to L2 a step. The ring is
small enough to stay in L2; with a slot for every step, loads came from memory (on an H200, docs/gpu).

Slots are reset to all ones for reuse by the program that owns the numbers, `BANK` slots at a time, once every
program has gathered them. A program that has gathered step t knows that all have published t, and so have
gathered t - 1. After a reset comes a fence. `RING` is three banks: between the reset of a slot and its next
use every program passes one more of these fences, so none reads the numbers that the slot held before.

Columns that pad the product to whole blocks of every warp belong to no program; they are always zero.

A batch tile's numbers of a step lie in blocks of some columns, [columns / block, BB, block], so that what a
warp loads at once is contiguous: one request to L2 for each line. All programs ask for the same lines at the
same time, so a step waits for all of their requests.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime.jit import constexpr_function

BANK, RING = gl.constexpr(8), gl.constexpr(24)  # slots
POLLS = gl.constexpr(1 << 20)  # after which a wait times out: about a second


@constexpr_function
def again_asm(flag):
    """PTX after a poll in vain: poll again, unless the wait or that of another program has timed out.

    It goes on at the label poll or done, and takes the registers polls, rest and more.
    """
    return "\n".join([
        "add.u32 polls, polls, 1;",
        "and.b32 rest, polls, 1023;",
        "setp.ne.u32 more, rest, 0;",
        "@more bra poll;",
        f"ld.relaxed.sys.global.b32 rest, {flag};",
        "setp.ne.u32 more, rest, 0;",
        "@more bra done;",
        f"setp.lt.u32 more, polls, {POLLS.value};",
        "@more bra poll;",
        f"st.relaxed.sys.global.b32 {flag}, 1;",
        "done:",
    ])  # fmt: skip


@constexpr_function
def poll_asm(pieces, elements, contiguous, size, native):
    """PTX that loads tensors, 16 or 8 bytes a load, until no number in them is all ones.

    Operands: the numbers of every tensor, their pointers, and the pointer to the timeout flag.

    Args:
        pieces: the number of tensors.
        elements: numbers of a tensor in one thread.
        contiguous: how many of these are contiguous in memory.
        size: bytes of a number, 2 or 4.
        native: whether the card has a maximum of two 16-bit numbers in one instruction.
    """
    words, outputs = contiguous * size // 4, pieces * elements * size // 4
    loads, merge = [], []
    for n in range(0, pieces * elements, contiguous):
        registers = [f"${n * size // 4 + word}" for word in range(words)]
        loads.append(f"ld.relaxed.gpu.global.v{words}.b32 {{{', '.join(registers)}}}, [${outputs + n}];")
        for register in registers:
            if size == 4:
                merge.append(f"max.u32 most, most, {register};")
            elif native:
                merge.append(f"max.u16x2 most, most, {register};")
            else:  # in ~x an all-ones half is zero, and subtracting 1 from it borrows
                merge += [f"not.b32 rest, {register};", "sub.u32 rest, rest, 65537;"]
                merge += [f"and.b32 rest, rest, {register};", "or.b32 most, most, rest;"]
    if size == 4:
        test = ["setp.eq.u32 stale, most, -1;"]
    elif native:
        test = ["shr.u32 rest, most, 16;", "setp.eq.u32 stale, rest, 65535;"]
        test += [
            "and.b32 rest, most, 65535;",
            "setp.eq.u32 more, rest, 65535;",
            "or.pred stale, stale, more;",
        ]
    else:
        test = ["and.b32 rest, most, -2147450880;", "setp.ne.u32 stale, rest, 0;"]
    return "\n".join([
        "{",
        ".reg .pred stale, more;",
        ".reg .b32 polls, most, rest;",
        "mov.b32 polls, 0;",
        "poll:",
        *loads,
        "mov.b32 most, 0;",
        *merge,
        *test,
        "@!stale bra done;",
        again_asm(f"[${outputs + pieces * elements}]"),
        "}",
    ])  # fmt: skip


@constexpr_function
def poll_constraints(pieces, elements, size):
    """The constraints on the operands of `poll_asm`."""
    return ",".join(["=&r"] * (pieces * elements * size // 4) + ["l"] * ((pieces + 1) * elements))


@constexpr_function
def repeated(kind, times):
    """One dtype for each output of inline assembly."""
    return (kind,) * times


@gluon.jit
def place(row, column, BB: gl.constexpr, BK: gl.constexpr):
    """Where a number of a batch tile lies in its part of a slot; four threads load a row of a block."""
    BLOCK: gl.constexpr = BK // 2
    return column // BLOCK * (BB * BLOCK) + row * BLOCK + column % BLOCK


@gluon.jit
def gather(
    slot, offsets, timed_out, FIRST: gl.constexpr, LAST: gl.constexpr, BK: gl.constexpr, BB: gl.constexpr,
    ONE_POINTER: gl.constexpr, ELEMENTS: gl.constexpr, NATIVE: gl.constexpr,
):  # fmt: skip
    """Load mma operands that other programs publish, polling until all of their numbers are there.

    Args:
        slot: the step's slot of the ring.
        offsets: of the first piece in the slot, in the layout of an operand.
        timed_out: the flag to set when the wait times out.
        FIRST: the first piece.
        LAST: one past the last piece.
        BK: columns of a piece, of which a thread has BK / 8 contiguous ones.
        BB: rows of a batch tile.
        ONE_POINTER: whether all pieces share a pointer, which takes fewer registers.
        ELEMENTS: numbers of a piece in one thread.
        NATIVE: whether the card has a maximum of two 16-bit numbers in one instruction.
    """
    KIND: gl.constexpr = slot.dtype.element_ty
    SIZE: gl.constexpr = KIND.primitive_bitwidth // 8
    operands = ()
    for k in gl.static_range(FIRST, LAST):
        if ONE_POINTER:  # so that constants become immediate offsets
            operands += ((slot + (offsets + FIRST * BB * BK)).to(gl.int64) + (k - FIRST) * (BB * BK * SIZE),)
        else:  # the form that was measured on GPUs
            operands += ((slot + (offsets + k * BB * BK)).to(gl.int64),)
    TEXT: gl.constexpr = poll_asm(LAST - FIRST, ELEMENTS, BK // 8, SIZE, NATIVE)
    CONSTRAINTS: gl.constexpr = poll_constraints(LAST - FIRST, ELEMENTS, SIZE)
    KINDS: gl.constexpr = repeated(KIND, LAST - FIRST)
    operands += (gl.zeros_like(operands[0]) + timed_out.to(gl.int64),)
    return gl.inline_asm_elementwise(TEXT, CONSTRAINTS, operands, KINDS, is_pure=False, pack=ELEMENTS)


@gluon.jit
def publish(pointers, values):
    """Publish numbers to other programs; a NaN of all ones is replaced by another NaN."""
    WORD: gl.constexpr = gl.int16 if values.dtype.primitive_bitwidth == 16 else gl.int32
    TEXT: gl.constexpr = "st.relaxed.gpu.global.b16" if gl.int16 == WORD else "st.relaxed.gpu.global.b32"
    CONSTRAINTS: gl.constexpr = "=r,l,h" if gl.int16 == WORD else "=r,l,r"
    bits = values.to(WORD, bitcast=True)
    bits = gl.where(bits == -1, 0x7FFF if gl.int16 == WORD else 0x7FFFFFFF, bits)
    operands = pointers.to(gl.int64), bits
    gl.inline_asm_elementwise(
        TEXT + " [$1], $2; mov.b32 $0, 0;", CONSTRAINTS, operands, gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def fence(NUM_WARPS: gl.constexpr):
    """A fence.acq_rel.gpu in every thread."""
    each: gl.constexpr = gl.BlockedLayout([1], [32], [NUM_WARPS], [0])
    zeros = gl.zeros([32 * NUM_WARPS], gl.int32, each)
    gl.inline_asm_elementwise(
        "fence.acq_rel.gpu; mov.b32 $0, $1;", "=r,r", [zeros], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def reset_bank(
    own, step, BEHIND: gl.constexpr, slot, GATES: gl.constexpr, APART: gl.constexpr, TILES: gl.constexpr,
    TILE: gl.constexpr, NUM_WARPS: gl.constexpr,
):  # fmt: skip
    """Once in BANK steps, reset this program's numbers in the last BANK slots that all have gathered.

    Args:
        own: this program's numbers in slot 0, of its first batch tile.
        step: the current step.
        BEHIND: how many steps back the last slot is that all programs have gathered.
        slot: numbers of a slot.
        GATES: tensors of a slot.
        APART: the distance between them.
        TILES: batch tiles of this program.
        TILE: the distance between them.
        NUM_WARPS: the number of warps.
    """
    WORD: gl.constexpr = gl.int16 if own.dtype.element_ty.primitive_bitwidth == 16 else gl.int32
    if (step % BANK == BEHIND - 1) & (step >= BEHIND):
        for n in gl.static_range(TILES):
            for back in gl.static_range(BEHIND, BANK + BEHIND):
                for gate in gl.static_range(GATES):
                    pointers = own + (step - back) % RING * slot + gate * APART + n * TILE
                    words = pointers.to(gl.pointer_type(WORD), bitcast=True)
                    gl.store(words, gl.full_like(words, -1, dtype=WORD))
        fence(NUM_WARPS)
