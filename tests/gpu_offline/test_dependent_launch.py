"""Programmatic dependent launch of step kernels: what they access before they wait for the step before."""

import pytest
import torch

pytest.importorskip("triton")

from builds import CARDS, STEP_TENSORS, WIDE_STEP_TENSORS, Build, compile_kernel
from lstm_fused.kernels import step
from lstm_fused.kernels.table import HEAD, NUMBERS
from planting import planted
from ptx import Fault, Machine, Program

T, B, H = 3, 5, 24
SHAPES = {
    **dict.fromkeys(("h", "h_next", "c_state", "dh_state", "dc_state", "c0"), (B, H)),
    **dict.fromkeys(("dy", "y", "c_all"), (T, B, H)),
    **dict.fromkeys(("xw", "dxw", "gates_all"), (T, B, 4 * H)),
    **{"weight_hh": (4 * H, H), "bias": (4 * H,), "peephole": (3 * H,)},
}
# Tensors that no step writes.
GIVEN = {
    "forward": {"table", "xw", "weight_hh", "bias", "peephole"},
    "backward": {"table", "dy", "weight_hh", "c_all", "c0", "gates_all", "peephole"},
}
WAIT = "    wait_for_step_before(PDL)\n"


def touched_early(direction, function=None, node=T - 1):
    """What a launch touches before it waits for the first time."""
    build = Build("step", direction, "bf16", H, CARDS[1])
    compiled, machine = compile_kernel(build, function), Machine()
    fields = STEP_TENSORS[direction]._fields
    tensors = {
        name: torch.zeros(SHAPES[name], dtype=torch.float32 if name in WIDE_STEP_TENSORS else torch.bfloat16)
        for name in fields
        if name in SHAPES
    }
    tensors["table"] = table = torch.zeros(NUMBERS, dtype=torch.int64)
    places = {name: machine.put(tensor) for name, tensor in tensors.items()}
    # Without layer norm dhw is dxw.
    addresses = [places.get("dxw" if name == "dhw" else name, 0) for name in fields]
    first, stride = (0, 1) if direction == "forward" else (T - 1, -1)
    table[: HEAD.value + len(addresses)] = torch.tensor([0, T, first, stride, *addresses])
    program = Program(compiled.asm["ptx"])
    machine.launch(program, build.plan().grid(B, H), [places["table"], node, B], compiled.metadata.shared)
    assert compiled.metadata.launch_pdl
    return {name for name, place in places.items() if place in machine.early[0]}


@pytest.mark.parametrize("direction", list(GIVEN))
def test_only_what_no_step_writes_is_read_before_the_wait(direction):
    assert touched_early(direction) == GIVEN[direction]


@pytest.mark.parametrize("direction", list(GIVEN))
def test_what_is_read_too_early_is_found(direction, tmp_path):
    state = {"forward": "c_state", "backward": "dc_state"}[direction]
    load = f"    c_prev = tl.load({state}" if direction == "forward" else f"    dc = tl.load({state}"
    line = load + " + state, mask, other=0)\n"
    module = planted(step, WAIT + line, line + WAIT, tmp_path)
    function = getattr(module, f"lstm_{direction}_step_kernel")
    assert touched_early(direction, function) == GIVEN[direction] | {state}


def test_a_launch_that_lets_the_next_one_begin_too_early_is_found(tmp_path):
    early = "    if PDL:\n        tl.extra.cuda.gdc_launch_dependents()\n"
    module = planted(step, WAIT, early + WAIT, tmp_path)
    with pytest.raises(Fault, match="may begin"):
        touched_early("forward", module.lstm_forward_step_kernel)


@pytest.mark.parametrize("direction", list(GIVEN))
def test_the_first_launch_waits_for_its_table(direction):
    assert not touched_early(direction, node=0)


def test_a_first_launch_that_does_not_wait_is_found(tmp_path):
    module = planted(step, "    may_read_table(node, PDL)\n", "", tmp_path)
    assert touched_early("forward", module.lstm_forward_step_kernel, 0) == GIVEN["forward"]
