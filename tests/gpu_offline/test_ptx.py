"""Compiled kernels, run instruction by instruction, and with each barrier left out."""

import re

import pytest
import torch

triton = pytest.importorskip("triton")

from cases import Case, make_tensors  # noqa: E402
from compiled import CARDS, Build, compile_kernel  # noqa: E402
from ptx import Fault, Machine, Program  # noqa: E402

from lstm_fused import reference  # noqa: E402

# The compiler parts two uses of one buffer even where each warp meets only bytes of its own, as in these.
IDLE = {("resident", "forward"): 1, ("cooperative", "backward"): 1}
BARRIER = re.compile(r"\n\tbar\.sync \t0;")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
# A product's rounding, and a little more for the steps that follow.
TOLERANCE = {"fp16": 4e-3, "bf16": 3e-2, "tf32": 4e-3}


def run(kernel, direction, kind, case, edit=lambda ptx: ptx, seed=0):
    """What the compiled kernel makes of a case, and what the reference makes of it."""
    build = Build(kernel, direction, kind, case.H, CARDS[0])
    compiled, plan = compile_kernel(build), build.plan()
    T, B, H = case.T, case.B, case.H
    t = make_tensors(case, DTYPES[kind])
    names = ("x", "weight_ih", "weight_hh", "bias_ih", "peephole", "weight_hr", "h0", "c0")
    out = reference.lstm_forward(*(t[n] for n in names), None, False, True)
    weights, states = (t["weight_hh"], t["bias_ih"], t["peephole"]), (t["h0"], t["c0"])
    if direction == "forward":
        wanted = (out.h_n, out.c_n, out.y, out.c, out.gates)
        found = [torch.full_like(w, torch.nan) for w in wanted]
        xw = t["x"].float() @ t["weight_ih"].float().T
        tensors = [xw, *weights, *states, *found]
        exchange = [torch.full((2, B, H), torch.nan, dtype=DTYPES[kind])]
    else:
        douts = (out.y, out.h_n, out.c_n)
        c_gates_c0 = (out.c, out.gates, t["c0"])
        wanted = reference.lstm_backward(
            *douts, *c_gates_c0, t["weight_hh"], t["peephole"], None, None, False
        )
        found = [torch.full_like(w, torch.nan) for w in wanted]
        tensors = [*douts, *c_gates_c0, t["weight_hh"], t["peephole"], *found]
        exchange = []
    rows, columns = plan.grid(B, H)
    if kernel == "cooperative":
        tensors += [*exchange, torch.zeros(rows, dtype=torch.int32)]
    machine = Machine(seed)
    addresses = [machine.put(tensor) for tensor in tensors]
    grid = (rows, columns if kernel == "cooperative" else 1)
    machine.launch(Program(edit(compiled.asm["ptx"])), grid, [*addresses, T, B], compiled.metadata.shared)
    return found, wanted


@pytest.mark.parametrize("kind", list(DTYPES))
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kernel", ["resident", "cooperative"])
def test_compiled_code_gives_what_the_reference_gives(kernel, direction, kind):
    found, wanted = run(kernel, direction, kind, Case("odd", T=3, B=17, I=3, H=40))
    tolerance = TOLERANCE[kind]
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", ["resident", "cooperative"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_each_barrier_is_missed_when_it_is_left_out(kernel, direction):
    case = Case("small", T=2, B=16, I=3, H=32)
    build = Build(kernel, direction, "fp16", case.H, CARDS[0])
    barriers = list(BARRIER.finditer(compile_kernel(build).asm["ptx"]))
    assert barriers
    idle = 0
    for barrier in barriers:
        try:
            found, wanted = run(
                kernel, direction, "fp16", case, lambda ptx, b=barrier: ptx[: b.start()] + ptx[b.end() :]
            )
            torch.testing.assert_close(tuple(found), tuple(wanted), rtol=4e-3, atol=4e-3)
            idle += 1
        except Fault:
            pass
    assert idle <= IDLE.get((kernel, direction), 0)
