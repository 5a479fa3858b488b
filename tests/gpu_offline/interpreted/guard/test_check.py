"""The check of a kernel: the faults that it notices, and what runs then."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from concurrently import concurrently
from guarded import CPU, REVERSE, SMALL, Y, check_right, close, fails, right, small, wrong_numbers
from lstm_fused.kernels import check, choose, cooperative, resident, scratch, verdicts
from lstm_fused.kernels.choose import Layer
from planting import planted


def wrong_in_the_second_tile(run, arguments):
    run()
    arguments[Y][:, 16:].mul_(1.1)


def wrong_past_the_lengths(run, arguments):
    run()
    if arguments[4] is not None:
        arguments[Y][arguments[4].min() :] += 0.1


def nothing_done_in_reverse(run, arguments):
    if not arguments[REVERSE]:
        run()


def other_bits_each_time(run, arguments):
    run()
    other_bits_each_time.turn ^= 1
    arguments[Y].view(torch.int32).bitwise_xor_(other_bits_each_time.turn)


other_bits_each_time.turn = 0
FAULTS = {
    wrong_numbers: r"y is off by \S+ where \S+ is allowed, T=4, reverse=False",
    wrong_in_the_second_tile: r"y is off by \S+ where",
    wrong_past_the_lengths: r"y is off by \S+ where",
    nothing_done_in_reverse: r"y is off by inf where \S+ is allowed, T=4, reverse=True",
    other_bits_each_time: "y differs from run to run",
    fails: "RuntimeError: out of resource: shared memory",
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_problem_has_every_option(direction):
    layer = SMALL._replace(direction=direction, P=2, varied=True)
    record, *_ = check.problem(choose.choose(layer, choose.card_at(CPU)), layer, 4, False)
    assert all(value is not None for value in (*record, *record.variant))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_plan_with_tiles_in_turn_is_checked_with_all_of_them(direction):
    layer = Layer(direction, 650, 64, torch.bfloat16, "ieee")
    plan = next(plan for plan in choose.fitting("persistent", layer, choose.CARDS[1]) if plan.TILES > 1)
    record, *_ = check.problem(plan, layer, 4, False)
    B = record.lengths.numel()
    assert B == plan.TILES * plan.BB + 1 and plan.grid(B, layer.H)[0] == 2
    assert verdicts.name(plan, layer) != verdicts.name(replace(plan, TILES=1), layer)


@pytest.mark.parametrize(("fault", "said"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_wrong_is_said_once_and_the_step_kernel_runs_instead(fault, said, checks, launched):
    module, x = small()
    launched.plant("forward", "resident", fault)
    message = f"resident kernel was not right on the interpreter: {said}.* The step kernel runs instead"
    with pytest.warns(RuntimeWarning, match=message), torch.no_grad():
        y = module(x)[0]
    assert launched[-2:] == ["forward step"] * 2
    with torch.no_grad():
        assert torch.equal(module(x)[0], y)
        module.engine = "reference"
        close(module(x)[0], y)
        module.engine = "triton"
        with pytest.raises(RuntimeError, match=f"resident kernel was not right.*{said}"):
            module(x)
    assert checks == ["forward resident", "forward step"]


@pytest.mark.filterwarnings("error")
def test_what_is_wrong_in_one_direction_is_replaced_there_alone(launched):
    module, x = small()
    launched.plant("backward", "resident", wrong_numbers)
    with pytest.warns(RuntimeWarning, match=r"dxw is off by .* The step kernel runs instead"):
        check_right(module, x)
    launched.clear()
    check_right(module, x)
    assert launched == ["forward resident", *["backward step"] * 3]


def test_where_every_kernel_is_wrong_the_reference_runs(launched, checks):
    module, x = small()
    launched.plant("forward", "resident", fails)
    launched.plant("forward", "step", fails)
    with pytest.warns(RuntimeWarning) as said, torch.no_grad():
        y = module(x)[0]
    assert ["The step kernel runs" in str(said[0].message), "The reference runs" in str(said[1].message)]
    assert len(said) == 2
    launched.clear()
    with torch.no_grad():
        module(x)
        module.engine = "reference"
        assert torch.equal(module(x)[0], y)
    assert launched == [] and checks == ["forward resident", "forward step"]


def test_a_fault_in_the_source_is_noticed(monkeypatch, tmp_path):
    broken = planted(resident, "cols < H)[None, :]", "cols < H - 1)[None, :]", tmp_path)
    monkeypatch.setattr(resident, "lstm_forward_resident_kernel", broken.lstm_forward_resident_kernel)
    found = check.check(choose.choose(SMALL, choose.card_at(CPU)), SMALL, CPU)
    assert not found.right and "is off by inf" in found.said


def test_no_memory_for_a_check_is_no_verdict(monkeypatch, launched, checks):
    def no_memory(run, arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module, x = small()
    for kernel in ("resident", "step"):
        launched.plant("forward", kernel, no_memory)
    with torch.no_grad():
        y = module(x)[0]
        for kernel in ("resident", "step"):
            launched.plant("forward", kernel, right)
        launched.clear()
        close(module(x)[0], y)
    assert checks == ["forward resident", "forward step", "forward resident"] and len(launched) == 5


def meta():
    return torch.device("meta")


@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, torch.no_grad, meta, lambda: torch.autocast("cpu", torch.bfloat16), nullcontext],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_the_user_has_turned_on_changes_nothing(direction, around):
    layer = Layer(direction, 5, 3, torch.float32, "tf32")
    plan = choose.choose(layer, choose.card_at(CPU))
    wanted = check.check(plan, layer, CPU)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with around():
            found = check.check(plan, layer, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == wanted and found.right
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_that_waited_in_vain_is_no_verdict_for_others(monkeypatch):
    layer = Layer("forward", 5, 3, torch.float32, "tf32")
    plan = choose.choose(layer, choose.card_at(CPU))
    late = scratch.timeout_flag_on(CPU)
    monkeypatch.setattr(
        check, "poisoned", lambda run, operands, plan: [run(*operands, plan=plan), late.fill_(1)][0]
    )
    found = check.check(plan, layer, CPU)
    assert not found.right and not found.lasting and "timed out" in found.said
    assert not scratch.timed_out(CPU)


def test_a_wait_in_vain_before_a_check_is_not_laid_to_the_plan(launched, checks):
    module, x = small()
    scratch.timeout_flag_on(CPU).fill_(1)
    with pytest.raises(RuntimeError, match=r"^a program of an earlier LSTM launch"):
        module(x)
    check_right(module, x)
    assert checks == ["forward resident", "forward resident", "backward resident"]


def test_a_wait_in_vain_that_ends_while_a_check_begins_is_not_laid_to_the_plan(launched, checks, monkeypatch):
    module, x = small()
    waited_for = check.synchronize

    def ends(device):
        monkeypatch.setattr(check, "synchronize", waited_for)
        scratch.timeout_flag_on(CPU).fill_(1)

    monkeypatch.setattr(check, "synchronize", ends)
    with pytest.raises(RuntimeError, match=r"^a program of an earlier LSTM launch"):
        module(x)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_kernels_that_wait_are_checked_in_one_launch_and_in_several(direction, monkeypatch):
    layer = Layer(direction, 19, 17, torch.float32, "tf32")
    plan = choose.fitting("cooperative", layer, choose.card_at(CPU))[0]
    name, grids = f"lstm_{direction}_cooperative_kernel", []
    kernel = getattr(cooperative, name)

    class Spy:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(cooperative, name, Spy())
    with concurrently(0):
        assert check.check(plan, layer, CPU).right
    columns = plan.grid(17, 19)[1]
    assert grids == [(2, columns)] * 2 + [(1, columns)] * 4
