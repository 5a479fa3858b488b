"""The exchange of h (backward: parts of dh) between the blocks of a cluster, in distributed shared memory.

Each block has room for what comes in two steps, and for each of them a barrier in its shared memory (an
mbarrier). A block sends its columns of h to every block of the cluster with st.async, whose arrival the
receiver's barrier counts in bytes; a phase ends when all bytes of a step are there. A block sends the h of
step t + 1 only when it has read all of step t, and the h of step t + 2 only when all have sent that of t + 1;
so two places do. So it is backward, where every block sends each the partial sums of its columns. After the
last step nothing is sent forward, and backward a block ends when all that is sent to it has come.

h, and a block's own da, lie in blocks of 64 bytes of each row, [columns / block, BB, block], in the order in
which the threads of a warp load their operands: no two of them use the same bank. The memory is declared here
and not by Triton, whose shared memory has no address in Gluon.
"""

from lstm_fused.kernels.exchange import again_asm
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime.jit import constexpr_function

BLOCK = gl.constexpr(64)  # bytes
CHUNK = gl.constexpr(16)  # bytes that a thread sends at once


@constexpr_function
def setup_asm(size, more):
    """PTX that declares the shared memory, and returns its address when all blocks have set it up."""
    return "\n".join([
        "{",
        f".shared .align 16 .b8 lstm_h[{size + 16 + more}];",
        ".reg .pred first;",
        ".reg .b32 thread;",
        "mov.u32 $0, lstm_h;",
        "mov.u32 thread, %tid.x;",
        "setp.eq.u32 first, thread, 0;",
        f"@first mbarrier.init.shared::cta.b64 [lstm_h+{size}], 1;",
        f"@first mbarrier.init.shared::cta.b64 [lstm_h+{size + 8}], 1;",
        "fence.mbarrier_init.release.cluster;",
        "barrier.cluster.arrive.release.aligned;",
        "barrier.cluster.wait.acquire.aligned;",
        "}",
    ])  # fmt: skip


# One thread tells the barrier how many bytes come. All wait until they are there.
WAIT = gl.constexpr(f"""{{
.reg .pred first, ready, more;
.reg .b32 thread, polls, rest;
mov.u32 thread, %tid.x;
setp.eq.u32 first, thread, 0;
@first mbarrier.arrive.expect_tx.shared::cta.b64 _, [$1], $3;
mov.b32 polls, 0;
poll:
mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ready, [$1], $2;
@ready bra done;
{again_asm("[$4]")}
mov.b32 $0, 0;
}}""")
REMOTE = gl.constexpr("mapa.shared::cluster.u32 $0, $1, $2;")


@constexpr_function
def send_asm(words, elements):
    """PTX that sends words to an address, whose arrival a barrier counts."""
    sent = ", ".join(f"${elements + n}" for n in range(words))
    at, ready = elements + words, 2 * elements + words
    send = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
    return "\n".join([
        f"{send} [${at}], {{{sent}}}, [${ready}];",
        *(f"mov.b32 ${n}, 0;" for n in range(elements)),
    ])  # fmt: skip


@constexpr_function
def send_constraints(words, elements):
    """The constraints on the operands of `send_asm`."""
    return ",".join(["=r"] * elements + ["r"] * (words + 2 * elements))


@constexpr_function
def add_asm(count, apart):
    """PTX that adds up numbers at equal distances in shared memory, neighbours first, in a fixed order."""
    numbers, adds = [f"part{n}" for n in range(count)], []
    loads = [f"ld.shared.f32 {number}, [$1+{n * apart}];" for n, number in enumerate(numbers)]
    while len(numbers) > 1:
        adds += [f"add.f32 {a}, {a}, {b};" for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
        numbers = numbers[::2]
    declared = f".reg .f32 part<{count}>;"
    return "\n".join(["{", declared, *loads, *adds, f"mov.f32 $0, {numbers[0]};", "}"])


@constexpr_function
def load_asm(elements, size):
    """PTX that loads a tensor, 16 bytes a load. Operands: its numbers, and the address of each."""
    words, each = elements * size // 4, 16 // size
    loads = []
    for n in range(0, elements, each):
        registers = ", ".join(f"${n * size // 4 + word}" for word in range(4))
        loads.append(f"ld.shared.v4.b32 {{{registers}}}, [${words + n}];")
    return "\n".join(loads)


@constexpr_function
def load_constraints(elements, size):
    """The constraints on the operands of `load_asm`."""
    return ",".join(["=r"] * (elements * size // 4) + ["r"] * elements)


@constexpr_function
def alone(kind):
    """A dtype, as inline assembly with one output takes it."""
    return (kind,)


@constexpr_function
def layout_sent(CTAS, NUM_WARPS, BB, BH, SIZE):
    """[receiver, row, column]: every thread has `CHUNK` bytes of this block's columns, for some receivers."""
    across = BH * SIZE // CHUNK.value
    down = min(BB, 32 // across)
    threads = [32 // (across * down), down, across]
    warps = [NUM_WARPS * down // BB, BB // down, 1]
    cta = [[0, 0, 1 << n] for n in range(CTAS.bit_length() - 1)]
    return gl.BlockedLayout([1, 1, CHUNK.value // SIZE], threads, warps, [2, 1, 0], cta)


@constexpr_function
def layout_staged(CTAS, SIZE):
    """[row, column] of this block in shared memory, by rows."""
    cta = [[0, 1 << n] for n in range(CTAS.bit_length() - 1)]
    return gl.SwizzledSharedLayout(CHUNK.value // SIZE, 1, 1, [1, 0], cta)


@gluon.jit
def address(row, column, BB: gl.constexpr, SIZE: gl.constexpr):
    """Where a number of h lies, in bytes."""
    WIDTH: gl.constexpr = BLOCK // SIZE
    return (column // WIDTH * (BB * WIDTH) + row * WIDTH + column % WIDTH) * SIZE


@gluon.jit
def set_up(STEP: gl.constexpr, MORE: gl.constexpr = 0):
    """The address of the shared memory for what comes, ``STEP`` bytes each step, the barriers, and more."""
    TEXT: gl.constexpr = setup_asm(2 * STEP, MORE)
    return gl.inline_asm_elementwise(TEXT, "=r,r", [gl.to_tensor(0)], gl.int32, is_pure=False, pack=1)


@gluon.jit
def partial(sender, row, column, BB: gl.constexpr, BH: gl.constexpr):
    """Where a block has a sender's partial sum of its column, in bytes: as the threads of a warp hold them.

    A thread has two rows of two columns, and sends these 16 bytes at once.
    """
    tile = (sender * (BH // 16) + column % BH // 16) * (BB // 8) + row // 8
    return tile * 512 + row % 8 // 2 * 128 + column % 16 // 2 * 16 + column % 2 * 8 + row % 2 * 4


@gluon.jit
def in_block(place, offset, block, STEP: gl.constexpr):
    """The addresses, in blocks of the cluster, of numbers and of the first barrier."""
    here, block = gl.broadcast(place + offset, block)
    ready = gl.zeros_like(here) + (place + 2 * STEP)
    there = gl.inline_asm_elementwise(REMOTE, "=r,r,r", [here, block], gl.int32, is_pure=True, pack=1)
    ready = gl.inline_asm_elementwise(REMOTE, "=r,r,r", [ready, block], gl.int32, is_pure=True, pack=1)
    return there, ready


@gluon.jit
def receivers(
    place, STEP: gl.constexpr, CTAS: gl.constexpr, NUM_WARPS: gl.constexpr, BB: gl.constexpr,
    BH: gl.constexpr, SIZE: gl.constexpr,
):  # fmt: skip
    """The addresses, in every block of the cluster, of the numbers of h sent and of the first barrier."""
    sent: gl.constexpr = layout_sent(CTAS, NUM_WARPS, BB, BH, SIZE)
    block = gl.arange(0, CTAS, gl.SliceLayout(1, gl.SliceLayout(2, sent)))[:, None, None]
    row = gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(2, sent)))[None, :, None]
    column = gl.arange(0, CTAS * BH, gl.SliceLayout(0, gl.SliceLayout(1, sent)))[None, None, :]
    return in_block(place, address(row, column, BB, SIZE), block, STEP)


@gluon.jit
def send(h, staged, there, ready, step, STEP: gl.constexpr):
    """Send this block's columns of h, the input of a step, to every block of the cluster.

    Args:
        h: [BB, columns].
        staged: shared memory for them, in which they get into the order of `there`.
        there: the addresses of `receivers`.
        ready: the barriers of `receivers`.
        step: the step that needs it.
        STEP: bytes of h.
    """
    staged.store(h)
    h = gl.expand_dims(staged.load(gl.SliceLayout(0, there.type.layout)), 0)
    post(h, there, ready, step, STEP)


@gluon.jit
def post(numbers, there, ready, step, STEP: gl.constexpr):
    """Send numbers, of which a thread has 16 contiguous bytes at a time, to the addresses of `in_block`."""
    ELEMENTS: gl.constexpr = CHUNK // (numbers.dtype.primitive_bitwidth // 8)
    TEXT: gl.constexpr = send_asm(CHUNK // 4, ELEMENTS)
    CONSTRAINTS: gl.constexpr = send_constraints(CHUNK // 4, ELEMENTS)
    numbers, there = gl.broadcast(numbers, there)
    operands = numbers, there + step % 2 * STEP, ready + step % 2 * 8
    gl.inline_asm_elementwise(TEXT, CONSTRAINTS, operands, gl.int32, is_pure=False, pack=ELEMENTS)


@gluon.jit
def wait(place, step, timed_out, STEP: gl.constexpr):
    """Wait until all of h is there that is the input of a step; a wait in vain sets the flag."""
    ready, phase = place + 2 * STEP + step % 2 * 8, (step // 2 % 2).to(gl.int32)
    operands = ready.to(gl.int32), phase, gl.to_tensor(STEP), timed_out.to(gl.int64)
    gl.inline_asm_elementwise(WAIT, "=r,r,r,r,l", operands, gl.int32, is_pure=False, pack=1)


@gluon.jit
def load(at, KIND: gl.constexpr):
    """Load an operand of a product from the shared memory, by the address of each number."""
    SIZE: gl.constexpr = KIND.primitive_bitwidth // 8
    ELEMENTS: gl.constexpr = at.shape[-2] * at.shape[-1] // 32
    TEXT: gl.constexpr = load_asm(ELEMENTS, SIZE)
    CONSTRAINTS: gl.constexpr = load_constraints(ELEMENTS, SIZE)
    found = gl.inline_asm_elementwise(TEXT, CONSTRAINTS, [at], alone(KIND), is_pure=False, pack=ELEMENTS)
    return found[0]


@gluon.jit
def add_up(at, COUNT: gl.constexpr, APART: gl.constexpr):
    """Add up what all blocks have sent, by the address of the first one's number."""
    TEXT: gl.constexpr = add_asm(COUNT, APART)
    return gl.inline_asm_elementwise(TEXT, "=f,r", [at], gl.float32, is_pure=False, pack=1)


@gluon.jit
def stage(at, da, KIND: gl.constexpr):
    """Store da of a cell's gates side by side, for all warps of this block to load."""
    HALF: gl.constexpr = KIND.primitive_bitwidth == 16
    WORD: gl.constexpr = gl.int16 if HALF else gl.int32
    STORE: gl.constexpr = "st.shared.v4.b16" if HALF else "st.shared.v4.b32"
    CONSTRAINTS: gl.constexpr = "=r,r,h,h,h,h" if HALF else "=r,r,r,r,r,r"
    operands = (at,)
    for n in gl.static_range(4):
        operands += (da[n].to(KIND).to(WORD, bitcast=True),)
    gl.inline_asm_elementwise(
        STORE + " [$1], {$2, $3, $4, $5}; mov.b32 $0, 0;", CONSTRAINTS, operands, gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip
    gl.inline_asm_elementwise(
        "bar.sync 0; mov.b32 $0, 0;", "=r,r", [gl.to_tensor(0)], gl.int32, is_pure=False, pack=1
    )
