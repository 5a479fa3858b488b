"""Runs compiled kernels in the PTX machine as the launchers launch them, and compares with the reference."""

from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from builds import Build, compile_kernel
from cases import layer_inputs, layer_saved, make_lengths, make_tensors
from lstm_fused.kernels import launcher, scratch, sequence
from lstm_fused.kernels.plan import EXCHANGES
from lstm_fused.kernels.table import HEAD, NUMBERS, BackwardTensors, ForwardTensors
from ptx import Machine, Program

from lstm_fused import reference
from lstm_fused.contract import OutputGradients

DTYPES = {
    **{"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp64": torch.float64},
    "fp32": torch.float32,
}
# A product's rounding, and a little more for the steps that follow.
TOLERANCE = {"fp16": 4e-3, "bf16": 3e-2, "tf32": 4e-3, "fp64": 1e-14, "fp32": 2e-6}
NOTHING = (None, False, "mov", ["u32"], ["%nothing", "0"], "nothing")


class Launcher:
    """Launches one compiled kernel in the machine, which holds every tensor it is given."""

    def __init__(
        self,
        card,
        kernel,
        direction,
        kind,
        H,
        left_out=None,
        seed=0,
        P=0,
        function=None,
        projected=False,
        uneven=False,
        tiles=None,
        absent=(),
    ):
        build = Build(kernel, direction, kind, H, card, P, tiles=tiles)
        self.compiled = compile_kernel(build, function, projected=projected, uneven=uneven, absent=absent)
        self.direction, self.plan, self.machine = direction, build.plan(), Machine(seed)
        self.program = Program(self.compiled.asm["ptx"])
        self.barriers = [n for n, (_, _, name, *_) in enumerate(self.program.instructions) if name == "bar"]
        if left_out is not None:
            self.program.instructions[left_out] = NOTHING
        self.addresses, self.table = {}, torch.zeros(NUMBERS, dtype=torch.int64)
        self.timed_out = torch.zeros(1, dtype=torch.int32)

    def address(self, tensor):
        if id(tensor) not in self.addresses:
            self.addresses[id(tensor)] = self.machine.put(tensor)
        return self.addresses[id(tensor)]

    def __call__(self, grid, tensors, *numbers, positions=None):
        values = [*(self.address(tensor) for tensor in tensors if tensor is not None), *numbers]
        self.machine.launch(self.program, grid, values, self.compiled.metadata.shared, positions)

    def step(self, grid, tensors, step, T, B, first=0, stride=1, positions=None):
        """A launch of a step kernel, whose table holds the tensors' addresses and half of the step."""
        addresses = [0 if tensor is None else self.address(tensor) for tensor in tensors]
        self.table[: HEAD.value + len(addresses)] = torch.tensor([step // 2, T, first, stride, *addresses])
        self(grid, [self.table], step - step // 2, B, positions=positions)

    @contextmanager
    def in_place_of_a_card(self, programs):
        """Every launch runs in the machine, those programs of it alone if any are named.

        What is allocated is full of NaN.
        """

        def launch(plan, kernel, grid, tensors, numbers, constants):
            self.kept = tensors  # so that no other tensor gets the same id
            self(grid, tensors, *numbers, positions=programs)

        torch.use_deterministic_algorithms(True)
        try:
            with (
                mock.patch.object(launcher, "launch", launch),
                mock.patch.object(scratch, "timeout_flag_on", return_value=self.timed_out),
            ):
                yield
        finally:
            torch.use_deterministic_algorithms(False)


def forward(launch, kernel, kind, case, programs=None, **changes):
    """The outputs of the compiled kernel for a case, one row of programs a launch, and the reference's."""
    T, B, H = case.T, case.B, case.H
    t = make_tensors(case, DTYPES[kind]) | changes
    inputs = layer_inputs(t, make_lengths(case, "cpu"), case.reverse)
    wanted = reference.forward(inputs)
    weights = (t["weight_hh"], inputs.bias, t["peephole"])
    wide = reference.accumulation_dtype(DTYPES[kind])
    xw = t["x"].to(wide) @ t["weight_ih"].to(wide).T
    y, h_n, c_n, c, gates = (torch.full_like(w, torch.nan) for w in wanted)
    if EXCHANGES[kernel] == "launches":
        h, h_next, c_state = t["h0"], h_n, t["c0"].to(wide)
        for step in range(T):
            tensors = ForwardTensors(xw, *weights, None, h, h_next, c_state, y, c, gates)
            launch.step(launch.plan.grid(B, H), tensors, step, T, B)
        h_n, c_n = (h_next if T % 2 else h), c_state.to(c_n.dtype)
    else:
        with launch.in_place_of_a_card(programs):
            plan, inputs = replace(launch.plan, at_once=1), inputs._replace(x=xw, weight_ih=None)
            h_n, c_n = sequence.forward(plan, inputs, y, c, gates)
    return [y, h_n, c_n, c, gates], list(wanted)


def backward_inputs(kind, case, **changes):
    """What a backward pass takes; the gradients of the outputs are these themselves."""
    t = make_tensors(case, DTYPES[kind]) | changes
    inputs = layer_inputs(t, make_lengths(case, "cpu"), case.reverse)
    out = reference.forward(inputs)
    return t, out, layer_saved(inputs, out), OutputGradients(*out[:3])


def backward(launch, kernel, kind, case, programs=None, at_once=1, **changes):
    """The same for the backward pass, so many rows of programs a launch."""
    T, B, H = case.T, case.B, case.H
    t, out, saved, douts = backward_inputs(kind, case, **changes)
    wanted = reference.backward(saved, douts)[:5]  # but for dhw
    dxw = torch.full_like(wanted[0], torch.nan)
    if EXCHANGES[kernel] == "launches":
        dh, dc = out.h_n.to(out.c.dtype), out.c_n.to(out.c.dtype)
        given = {name: t[name] for name in ("weight_hh", "c0", "peephole")}
        given |= {"c_all": out.c, "gates_all": out.gates, "lengths": None}
        tensors = BackwardTensors(dy=out.y, dxw=dxw, dhw=dxw, dh_state=dh, dc_state=dc, **given)
        for step in range(T + 1):
            launch.step(launch.plan.grid(B, H), tensors, step, T, B, T - 1, -1)
        return [dxw, dh.to(dxw.dtype), dc.to(dxw.dtype)], list(wanted[:3])
    with launch.in_place_of_a_card(programs):
        plan = replace(launch.plan, at_once=at_once)
        found = sequence.backward(plan, saved, douts, dxw)
    return [dxw, *found], list(wanted)


DIRECTIONS = {"forward": forward, "backward": backward}
