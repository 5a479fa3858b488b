"""The PTX machine's shuffles, each in a program of its own, against what the PTX ISA says of the lanes."""

import pytest
import torch

pytest.importorskip("triton")

from ptx import Fault, Machine, Program

PROGRAM = """
.visible .entry f(
    .param .u64 f_param_0,
    .param .u64 f_param_1,
    .param .u64 f_param_2
)
.reqntid 64
{
    ld.param.u64 %rd1, [f_param_0];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, 0;
    setp.eq.u32 %p1, %r1, %r1;
    setp.lt.u32 %p2, %r1, 16;
    and.b32 %r4, %r1, 7;
    mov.u32 %r5, 31;
    mov.u32 %r6, -1;
    <shuffle>;
    selp.u32 %r3, 1, 0, %p1;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd3, %rd1, %rd2;
    st.global.v2.b32 [%rd3], {%r2, %r3};
    ret;
}
"""


def run(shuffle):
    """What each of 64 threads has got, which gives its own number; and the predicate."""
    out = torch.full((64, 2), -1, dtype=torch.int32)
    machine = Machine()
    address = machine.put(out)
    machine.launch(Program(PROGRAM.replace("<shuffle>", shuffle)), (1, 1), [address], 0)
    return out.T.tolist()


# The instruction, then by lane: the lane that it gets from, and whether that one is in range.
FORMS = {
    "bfly.b32 %r2, %r1, 16, 31, -1": (lambda n: n ^ 16, lambda n: True),
    "bfly.b32 %r2|%p1, %r1, 1, 31, -1": (lambda n: n ^ 1, lambda n: True),
    "idx.b32 %r2, %r1, 5, 31, -1": (lambda n: 5, lambda n: True),
    "idx.b32 %r2, %r1, %r4, 31, -1": (lambda n: n % 8, lambda n: True),
    "idx.b32 %r2|%p1, %r1, %r4, %r5, %r6": (lambda n: n % 8, lambda n: True),
    "idx.b32 %r2|%p1, %r1, 9, 7, -1": (lambda n: n, lambda n: False),
    "up.b32 %r2, %r1, 1, 0, -1": (lambda n: max(n - 1, 0), lambda n: True),
    "up.b32 %r2|%p1, %r1, 4, 0, -1": (lambda n: n - 4 if n >= 4 else n, lambda n: n >= 4),
    "down.b32 %r2|%p1, %r1, 3, 31, 0xffffffff": (lambda n: n + 3 if n < 29 else n, lambda n: n < 29),
    "down.b32 %r2|%p1, %r1, %r4, 31, -1": (
        lambda n: n + n % 8 if n + n % 8 < 32 else n,
        lambda n: n + n % 8 < 32,
    ),
    # In segments of 8 lanes.
    "down.b32 %r2|%p1, %r1, 2, 6175, -1": (lambda n: n + 2 if n % 8 < 6 else n, lambda n: n % 8 < 6),
    "up.b32 %r2|%p1, %r1, 2, 6144, -1": (lambda n: n - 2 if n % 8 >= 2 else n, lambda n: n % 8 >= 2),
    "idx.b32 %r2|%p1, %r1, 3, 6175, -1": (lambda n: n // 8 * 8 + 3, lambda n: True),
    "bfly.b32 %r2|%p1, %r1, 8, 6175, -1": (lambda n: n ^ 8 if n & 8 else n, lambda n: (n & 8) != 0),
}


@pytest.mark.parametrize("shuffle", FORMS)
def test_a_shuffle(shuffle):
    source, in_range = FORMS[shuffle]
    found, predicate = run(f"shfl.sync.{shuffle}")
    threads = [(warp, lane) for warp in (0, 32) for lane in range(32)]
    assert found == [warp + source(lane) for warp, lane in threads]
    assert predicate == [in_range(lane) for _, lane in threads]


def test_a_shuffle_of_some_lanes_names_them():
    found, _ = run("@%p2 shfl.sync.bfly.b32 %r2, %r1, 1, 31, 65535")
    assert found[:16] == [n ^ 1 for n in range(16)] and found[16:] == [0] * 48
    for members in ("-1", "255"):
        with pytest.raises(Fault, match="other threads than those that it names"):
            run(f"@%p2 shfl.sync.bfly.b32 %r2, %r1, 1, 31, {members}")
    with pytest.raises(Fault, match="from a thread that takes no part"):
        run("@%p2 shfl.sync.idx.b32 %r2, %r1, 20, 31, 65535")
