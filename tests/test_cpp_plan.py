"""What the C++ engine's plan (csrc/plan) chooses at the benchmarks' sizes, on every instruction set."""

from itertools import product

import pytest
import torch
from cases import TIMED

from lstm_fused.backends import cpp

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

L2 = 2 * 2**20
MR = {"generic": 6, "avx2": 6, "generic512": 14, "avx512": 14, "avx512bf16": 14, "amx": 14}
AMX_ROWS = 16
NARROW = ("generic", "avx2")  # vectors of less than a cache line, which are not stored past the caches

# r: each thread takes rows of the batch if they fill its register tiles, MR rows; R: if they fill AMX tiles
# x8: W_ih x is hoisted out of the step, for 8 steps at a time
# p: a step's product prefetches what its epilogue reads and writes
# s: gates or dxw are stored past the caches
VECTORS = """
dtype     call           threads  mnist mid   long  ptb   stream wide  big
float32   forward        12       r     r     -     -     rx64  r     -
float32   saving forward 12       r     rps   ps    p     rx64  rps   ps
float32   backward       12       r     rps   ps    p     r     rps   ps
float64   forward        12       r     -     -     -     -     r     -
float64   saving forward 12       rp    ps    ps    ps    -     rps   ps
float64   backward       12       rp    ps    ps    ps    -     rps   ps
bfloat16  forward        12       r     r     -     -     rx64  r     -
bfloat16  saving forward 12       r     rp    ps    -     rx64  rps   ps
bfloat16  backward       12       r     rp    ps    -     r     rps   ps
"""
# On AMX, which multiplies bfloat16; the others as above.
AMX = """
dtype     call           threads  mnist mid   long   ptb  stream  wide  big
bfloat16  forward        1        R     R     x8     x4   Rx64    R     -
bfloat16  forward        2        R     R     -      x4   Rx64    R     -
bfloat16  saving forward 1        R     R     x8s    x4   Rx64    Rs    s
bfloat16  saving forward 2        R     R     s      x4   Rx64    Rs    s
bfloat16  backward       12       R     R     s      -    R       Rs    s
"""


def plan(isa, dtype, call, sizes, threads):
    return cpp.plan(isa, getattr(torch, dtype), sizes, call, threads, L2)


def written(isa, chosen):
    """A plan in the words of the tables."""
    rows = {0: "", MR[isa]: "r", AMX_ROWS: "R"}[chosen["min_rows_per_thread"]]
    hoisted = f"x{chosen['x_steps']}" if chosen["x_steps"] > 1 else ""
    return rows + hoisted + "p" * chosen["prefetches"] + "s" * chosen["streaming_stores"] or "-"


@pytest.mark.parametrize("isa", MR)
def test_plans_at_the_sizes_of_the_benchmarks(isa):
    try:
        plan(isa, "float32", "forward", [1, 1, 1, 1, 1], 1)
    except ValueError as error:
        pytest.skip(str(error))
    lines = VECTORS.split("\n")[2:-1]
    if isa in NARROW:
        lines = [line.replace("ps", "p ") for line in lines]
    if isa == "amx":
        lines = [line for line in lines if line[:10].strip() != "bfloat16"] + AMX.split("\n")[2:-1]
    calls = [
        (line[:10].strip(), line[10:25].strip(), line[25:34].strip(), line[34:].split()) for line in lines
    ]
    expected, found = {}, {}
    for dtype, call, thread_counts, cells in calls:
        for threads in map(int, thread_counts):
            for case, cell in zip(TIMED, cells, strict=True):
                chosen = plan(isa, dtype, call, [case.T, case.B, case.I, case.H, case.H], threads)
                assert chosen["threads"] == threads
                expected[dtype, call, threads, case.name] = cell
                found[dtype, call, threads, case.name] = written(isa, chosen)
    assert len(found) == 3 * 3 * 2 * len(TIMED)
    assert found == expected


def test_products_take_blocks_of_at_most_1024_rows():
    for case in TIMED:
        chosen = plan("generic", "float32", "products", [case.T, case.B, case.I, case.H, case.H], 2)
        assert (chosen["threads"], chosen["KC"]) == (2, min(case.T * case.B, 1024))
    assert plan("generic", "float32", "products", [2, 8, 64, 64, 64], 2)["KC"] == 16


def test_the_packed_da_of_a_block_takes_a_quarter_of_l2():
    """112 rows of 14 × 8, or 48 of 6 × 8; a power of two of them in k, at least 256."""
    MB = 2**20
    found = {
        (isa, dtype, l2): cpp.plan(isa, getattr(torch, dtype), [100, 32, 64, 64, 64], "products", 2, l2)["KC"]
        for isa, dtype in (("generic512", "float32"), ("generic512", "float64"), ("generic", "float32"))
        for l2 in (MB // 2, MB, 2 * MB)
    }
    assert list(found.values()) == [256, 512, 1024, 256, 256, 512, 512, 1024, 1024]


def test_small_steps_take_fewer_threads():
    # A step of 4 * 64 * 64 * 2 multiply-adds a row, 1.3 µs; a barrier takes 2 µs and more, a start 20.
    def chosen(T, threads):
        return {
            B: plan("generic", "float32", "forward", [T, B, 64, 64, 64], threads)["threads"]
            for B in (1, 3, 4, 100)
        }

    assert chosen(1000, 2) == {1: 1, 3: 1, 4: 2, 100: 2}
    assert chosen(1000, 4) == {1: 1, 3: 4, 4: 4, 100: 4}
    assert chosen(10, 4) == {1: 1, 3: 1, 4: 1, 100: 4}


# The number of threads, given 8, 16 and 64, of a forward and a backward pass in float32. More would wait
# longer than they work, or leave some with nothing to do: 55 threads split ptb's 163 vectors three by three.
MANY = {
    "mnist": (8, 16, 16, 8, 16, 16),
    "mid": (8, 16, 32, 8, 16, 32),
    "long": (8, 16, 64, 8, 16, 64),
    "ptb": (8, 15, 55, 8, 14, 41),
    "stream": (8, 8, 8, 8, 8, 8),
    "wide": (8, 16, 37, 8, 16, 37),
    "big": (8, 16, 64, 8, 16, 64),
}


def test_many_threads():
    found = {
        case.name: tuple(
            plan("generic", "float32", call, [case.T, case.B, case.I, case.H, case.H], threads)["threads"]
            for call in ("forward", "backward")
            for threads in (8, 16, 64)
        )
        for case in TIMED
    }
    assert found == MANY


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("call", ["forward", "saving forward", "backward"])
def test_more_threads_are_never_slower_by_the_model(call, dtype):
    for T, B, H in product((1, 10, 1000), (1, 3, 8, 64, 300), (1, 8, 64, 100, 512)):
        times = [plan("generic", dtype, call, [T, B, H, H, H], n)["step_ns"] for n in (1, 2, 8, 16, 64)]
        assert times == sorted(times, reverse=True), (T, B, H)


def test_the_operator_refuses_what_has_no_plan():
    with pytest.raises(RuntimeError, match='not compiled for "mmx"'):
        plan("mmx", "float32", "forward", [1, 1, 1, 1, 1], 1)
    with pytest.raises(RuntimeError, match="TBIHP must be five sizes"):
        plan(cpp.isa(), "float32", "forward", [1, 1, 1, 1], 1)


# T, B, I, H, P: up to 16 rows in all, for dx up to 32. W_hh and W_ih are read as they are if they consist of
# whole panels.
@pytest.mark.parametrize(
    ("sizes", "dtype", "packed"),
    [
        ([1, 16, 64, 64, 64], "float32", ""),
        ([16, 1, 64, 64, 64], "float32", ""),
        ([1, 17, 64, 64, 64], "float32", "fb"),
        ([1, 32, 64, 64, 64], "float32", "fb"),
        ([1, 33, 64, 64, 64], "float32", "fbp"),
        ([1, 12, 60, 64, 64], "float32", "p"),
        ([1, 12, 64, 60, 60], "float32", "b"),
        ([1, 12, 64, 64, 64], "float64", "f"),
        ([1, 12, 64, 64, 64], "bfloat16", "fbp"),
    ],
)
@pytest.mark.parametrize("isa", MR)
def test_few_rows_multiply_by_weights_as_they_are(isa, sizes, dtype, packed):
    calls = {"f": ("forward", "saving forward"), "b": ("backward",), "p": ("products",)}
    try:
        chosen = {
            letter: {plan(isa, dtype, call, sizes, 2)["packs"] for call in of} for letter, of in calls.items()
        }
    except ValueError as error:
        pytest.skip(str(error))
    assert chosen == {letter: {letter in packed} for letter in calls}
