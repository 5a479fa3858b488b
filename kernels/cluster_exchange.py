"""The exchange of h between the blocks of a cluster, through distributed shared memory.

Each block has room for h of two steps, and for each of them a barrier in its shared memory (an mbarrier). A
block sends its columns of h to every block of the cluster with st.async, whose arrival the receiver's barrier
counts in bytes; a phase ends when all bytes of a step are there. A block sends the h of step t + 1 only when
it has read all of step t, and the h of step t + 2 only when all have sent that of t + 1; so two places do.

h lies in blocks of 64 bytes of each row, [columns / block, BB, block], in the order in which the threads of a
warp load their operands: no two of them use the same bank. The memory is declared here and not by Triton,
whose shared memory has no address in Gluon.
"""

from lstm_fused.kernels.exchange import again_asm
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime.jit import constexpr_function

BLOCK = gl.constexpr(64)  # bytes
CHUNK = gl.constexpr(16)  # bytes that a thread sends at once


@constexpr_function
def setup_asm(size):
    """PTX that declares the shared memory, and returns its address when all blocks have set it up."""
    return "\n".join([
        "{",
        f".shared .align 16 .b8 lstm_h[{size + 16}];",
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
def set_up(STEP: gl.constexpr):
    """The address of the shared memory for h, ``STEP`` bytes each step; the barriers come after it."""
    TEXT: gl.constexpr = setup_asm(2 * STEP)
    return gl.inline_asm_elementwise(TEXT, "=r,r", [gl.to_tensor(0)], gl.int32, is_pure=False, pack=1)


@gluon.jit
def receivers(
    place, STEP: gl.constexpr, CTAS: gl.constexpr, NUM_WARPS: gl.constexpr, BB: gl.constexpr,
    BH: gl.constexpr, SIZE: gl.constexpr,
):  # fmt: skip
    """The addresses, in every block of the cluster, of the numbers sent and of the first barrier."""
    sent: gl.constexpr = layout_sent(CTAS, NUM_WARPS, BB, BH, SIZE)
    block = gl.arange(0, CTAS, gl.SliceLayout(1, gl.SliceLayout(2, sent)))[:, None, None]
    row = gl.arange(0, BB, gl.SliceLayout(0, gl.SliceLayout(2, sent)))[None, :, None]
    column = gl.arange(0, CTAS * BH, gl.SliceLayout(0, gl.SliceLayout(1, sent)))[None, None, :]
    here, block = gl.broadcast(place + address(row, column, BB, SIZE), block)
    ready = gl.zeros_like(here) + (place + 2 * STEP)
    there = gl.inline_asm_elementwise(REMOTE, "=r,r,r", [here, block], gl.int32, is_pure=True, pack=1)
    ready = gl.inline_asm_elementwise(REMOTE, "=r,r,r", [ready, block], gl.int32, is_pure=True, pack=1)
    return there, ready


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
    ELEMENTS: gl.constexpr = CHUNK // (h.dtype.primitive_bitwidth // 8)
    TEXT: gl.constexpr = send_asm(CHUNK // 4, ELEMENTS)
    CONSTRAINTS: gl.constexpr = send_constraints(CHUNK // 4, ELEMENTS)
    staged.store(h)
    h = gl.expand_dims(staged.load(gl.SliceLayout(0, there.type.layout)), 0)
    h, there = gl.broadcast(h, there)
    operands = h, there + step % 2 * STEP, ready + step % 2 * 8
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
    ELEMENTS: gl.constexpr = at.shape[0] * at.shape[1] // 32
    TEXT: gl.constexpr = load_asm(ELEMENTS, SIZE)
    CONSTRAINTS: gl.constexpr = load_constraints(ELEMENTS, SIZE)
    found = gl.inline_asm_elementwise(TEXT, CONSTRAINTS, [at], alone(KIND), is_pure=False, pack=ELEMENTS)
    return found[0]
