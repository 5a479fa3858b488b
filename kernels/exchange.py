"""How the programs of a persistent kernel hand h or da to one another: through L2, each number its own flag.

A slot of the exchange holds one step. Before a program has published a number, all of its bits are ones;
whoever gathers it loads it again until they are not. So there is no counter, no barrier and, but for one in
`BANK` steps, no fence, and a number is on its way as soon as it is known. The slots are few enough to stay in
L2, where a slot for each step would come back from memory (measured on an H200, docs/gpu).

A program empties its numbers of steps that all have gathered, `BANK` slots at a time, and then fences. `RING`
is three banks: after a slot was emptied every program goes through that fence once more before it gathers
from the slot, so it cannot see what stood there a round before.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime.jit import constexpr_function

BANK, RING = gl.constexpr(8), gl.constexpr(24)  # slots
POLLS = gl.constexpr(1 << 22)  # some seconds; then whoever waits gives up, and says so


@constexpr_function
def gather_text(pieces, elements, contiguous, size, native):
    """Load pieces of 16 or 8 bytes each, again and again until none of their numbers is all ones.

    Args:
        pieces: how many tensors there are; operands are what is loaded of each, its pointers, and late's.
        elements: numbers of each that a thread has.
        contiguous: how many of these lie together in memory.
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
            else:  # a half that is all ones is zero in ~x, and borrows when 1 is taken from it
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
    late = f"[${outputs + pieces * elements}]"
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
        "add.u32 polls, polls, 1;",
        "and.b32 rest, polls, 1023;",
        "setp.ne.u32 more, rest, 0;",
        "@more bra poll;",
        f"ld.relaxed.sys.global.b32 rest, {late};",
        "setp.ne.u32 more, rest, 0;",
        "@more bra done;",
        f"setp.lt.u32 more, polls, {POLLS.value};",
        "@more bra poll;",
        f"st.relaxed.sys.global.b32 {late}, 1;",
        "done:",
        "}",
    ])  # fmt: skip


@constexpr_function
def gather_constraints(pieces, elements, size):
    """The operands of `gather_text`."""
    return ",".join(["=&r"] * (pieces * elements * size // 4) + ["l"] * ((pieces + 1) * elements))


@constexpr_function
def repeated(kind, times):
    """A tuple of a dtype, for each output of an inline assembly."""
    return (kind,) * times


@gluon.jit
def gather(
    slot, offsets, columns, blank, late, FIRST: gl.constexpr, LAST: gl.constexpr, BK: gl.constexpr,
    PUBLISHED: gl.constexpr, PADDED: gl.constexpr, ELEMENTS: gl.constexpr, NATIVE: gl.constexpr,
):  # fmt: skip
    """Load what other programs publish, waiting for it: each number tells by itself whether it is there.

    Pieces FIRST to LAST of BK columns each, at these offsets in a slot; columns from PUBLISHED on, up to
    PADDED, are zeros. A thread has so many ELEMENTS of a piece, BK / 8 of them side by side.
    """
    KIND: gl.constexpr = slot.dtype.element_ty
    SIZE: gl.constexpr = KIND.primitive_bitwidth // 8
    operands = ()
    for k in gl.static_range(FIRST, LAST):
        pointer = (slot + (offsets + k * BK)).to(gl.int64)
        if PADDED > PUBLISHED:
            pointer = gl.where(columns + k * BK < PUBLISHED, pointer, blank.to(gl.int64))
        operands += (pointer,)
    TEXT: gl.constexpr = gather_text(LAST - FIRST, ELEMENTS, BK // 8, SIZE, NATIVE)
    CONSTRAINTS: gl.constexpr = gather_constraints(LAST - FIRST, ELEMENTS, SIZE)
    KINDS: gl.constexpr = repeated(KIND, LAST - FIRST)
    operands += (gl.zeros_like(operands[0]) + late.to(gl.int64),)
    return gl.inline_asm_elementwise(TEXT, CONSTRAINTS, operands, KINDS, is_pure=False, pack=ELEMENTS)


@gluon.jit
def publish(pointers, values):
    """Store numbers for other programs to gather; NaN are stored as one whose bits are not all ones."""
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
    """Whoever sees what this thread stores after it sees what it stored before, if they fence too."""
    each: gl.constexpr = gl.BlockedLayout([1], [32], [NUM_WARPS], [0])
    zeros = gl.zeros([32 * NUM_WARPS], gl.int32, each)
    gl.inline_asm_elementwise(
        "fence.acq_rel.gpu; mov.b32 $0, $1;", "=r,r", [zeros], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def empty_bank(
    own, step, BEHIND: gl.constexpr, slot, GATES: gl.constexpr, COLUMNS: gl.constexpr, NUM_WARPS: gl.constexpr
):
    """Make this program's numbers of a bank unpublished again, once in BANK steps that all have gathered.

    All have gathered what is so many steps BEHIND. Own is where the numbers stand in slot 0, of GATES gates
    that lie COLUMNS apart.
    """
    WORD: gl.constexpr = gl.int16 if own.dtype.element_ty.primitive_bitwidth == 16 else gl.int32
    if (step % BANK == BEHIND - 1) & (step >= BEHIND):
        for back in gl.static_range(BEHIND, BANK + BEHIND):
            for gate in gl.static_range(GATES):
                pointers = own + (step - back) % RING * slot + gate * COLUMNS
                words = pointers.to(gl.pointer_type(WORD), bitcast=True)
                gl.store(words, gl.full_like(words, -1, dtype=WORD))
        fence(NUM_WARPS)
