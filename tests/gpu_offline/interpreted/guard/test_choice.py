"""Which plan runs: by default, by the settings, by name, and where no check can run."""

import sys
from itertools import product

import pytest
import torch
from guarded import CPU, SMALL, check_right, close, outcome, small, wrong_numbers
from lstm_fused.kernels import check, choose, guard, launch
from lstm_fused.kernels.choose import Layer
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused
from lstm_fused import LSTM, ArgumentError
from lstm_fused.backends import table, triton


def test_a_plan_is_checked_once_and_used(checks, launched, monkeypatch):
    module, x = small()
    check_right(module, x)
    assert checks == ["forward resident", "backward resident"]
    # A run for each time direction and again for its bits, and the call's own.
    assert launched == ["forward resident"] * 5 + ["backward resident"] * 5
    launched.clear()
    with monkeypatch.context() as patch:
        patch.setattr(guard, "decide", None)  # a later call looks it up
        check_right(module, x)
    check_right(LSTM(4, 5), torch.randn(3, 2, 4))
    assert len(checks) == 2 and launched == ["forward resident", "backward resident"] * 2
    check_right(LSTM(4, 6), torch.randn(3, 2, 4))
    assert len(checks) == 4


def test_each_dtype_precision_and_option_is_a_plan_of_its_own(checks):
    module, x = small()
    kinds = [(SMALL.dtype, "high"), (SMALL.dtype, "highest"), (torch.bfloat16, "high")]
    with torch.no_grad():
        for number, (dtype, products) in enumerate(kinds):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(products)
            module.to(dtype)(x.to(dtype))
            torch.set_float32_matmul_precision(before)
            assert checks == ["forward resident"] * (number + 1)
        LSTM(3, 5, proj_size=2)(x)
        LSTM(3, 5, cell_clip=1.0)(x)
    assert checks[3:] == ["forward step"] * 2


def test_no_plan_is_tried_twice():
    for kernel, direction, H, B in product(
        choose.KERNELS, ("forward", "backward"), (64, 256, 650, 1024), (16, 64, 256)
    ):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            plans = list(choose.plans(kernel, Layer(direction, H, B, dtype, "tf32")))
            assert len(plans) == len(set(plans)), (kernel, direction, H, B)


@pytest.mark.parametrize("setting", ["off", "step", "unchecked"])
def test_settings(setting, checks, launched, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_GPU", setting)
    module, x = small()
    check_right(module, x)
    kernel = {"off": None, "step": "step", "unchecked": "resident"}[setting]
    assert {name.split()[1] for name in launched} == ({kernel} if kernel else set())
    assert checks == (["forward step", "backward step"] if setting == "step" else [])
    module.engine = "triton"  # by name it runs whatever the setting
    with torch.no_grad():
        module(x)
    assert launched[-1] == f"forward {kernel or 'resident'}"


def test_settings_hold_from_the_next_call_on(launched, monkeypatch):
    module, x = small()
    for setting, count in (("unchecked", 1), ("off", 1), ("unchecked", 2)):
        monkeypatch.setenv("LSTM_FUSED_GPU", setting)
        with torch.no_grad():
            module(x)
        assert len(launched) == count


def test_a_wrong_setting_is_refused(monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_GPU", "on")
    module, x = small()
    with pytest.raises(ArgumentError, match=r"^LSTM_FUSED_GPU: expected one of 'auto', .* got 'on'$"):
        module(x)


def test_a_kernel_that_is_named_is_never_replaced(monkeypatch, launched):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "resident")
    launched.plant("forward", "resident", wrong_numbers)
    module, x = small()
    with pytest.raises(RuntimeError, match="resident kernel was not right"):
        module(x)


def test_kernels_that_wait_run_by_default_only_where_they_are_tested(monkeypatch):
    layer, card = Layer("backward", 256, 16, torch.bfloat16, "ieee"), choose.CARDS[1]
    assert choose.choose(layer, card).kernel == "cluster"
    assert [plan.kernel for plan in guard.candidates(layer, card, False)] == ["cluster"]
    all_kernels = ["cluster", "persistent", "cooperative", "step"]
    for tested, kernels in (((), ["step"]), (("sm_90",), all_kernels), (("A100",), ["step"])):
        monkeypatch.setattr(guard, "WAITING_TESTED", tested)
        assert [plan.kernel for plan in guard.candidates(layer, card, True)] == kernels


def test_after_tiles_in_turn_the_same_kernel_with_one_tile_is_tried():
    layer, card = Layer("backward", 768, 64, torch.float16, "ieee"), choose.CARDS[1]
    plans = [(plan.kernel, plan.TILES) for plan in guard.candidates(layer, card, True)]
    assert plans[:2] == [("persistent", 2), ("persistent", 1)]
    assert plans[-1][0] == "step" and len(set(plans)) == len(plans)


def capture(monkeypatch):
    monkeypatch.setattr(guard, "capturing", lambda device: True)
    return lambda call, x: call(x)


def vmap(monkeypatch):
    return lambda call, x: torch.vmap(call)(x[None].repeat(2, 1, 1, 1))[0]


def gradients_of_a_vmap(monkeypatch):
    def run(call, x):
        samples = x[None].repeat(2, 1, 1, 1)
        torch.vmap(torch.func.grad(lambda x: call(x).sum()))(samples)
        return torch.vmap(call)(samples)[0]

    return run


@pytest.mark.parametrize("how", [capture, vmap, gradients_of_a_vmap], ids=lambda how: how.__name__)
def test_where_no_check_can_run_only_checked_plans_are_used(how, checks, launched, monkeypatch):
    module, x = small()
    call = lambda x: module(x)[0]  # noqa: E731
    with monkeypatch.context() as patch, torch.no_grad():
        run = how(patch)
        y = run(call, x)
    assert checks == [] and launched == []
    outcome(module, x)
    with monkeypatch.context() as patch, torch.no_grad():
        run = how(patch)
        launched.clear()
        close(run(call, x), y)
    assert len(checks) == 2 and launched[0] == "forward resident"


def test_programs_are_made_without_a_check_and_run_with_one(checks, launched):
    module, x = small()
    with torch.no_grad():
        module.engine = "reference"
        wanted = module(x)[0]
        module.engine = None
    with FakeTensorMode(allow_non_fake_inputs=True):
        module(x)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
    assert "triton_or_reference_forward" in str(program.graph)
    assert checks == [] and launched == []
    close(program.module()(x)[0], wanted)
    assert checks == ["forward resident"] and launched[-1] == "forward resident"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own doing
def test_a_compiled_module_falls_back_too(launched):
    module, x = small()
    launched.plant("forward", "resident", wrong_numbers)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="The step kernel runs instead"):
        found = outcome(compiled, x)
    module.engine = "reference"
    close(found, outcome(module, x))


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3)])
def test_nothing_to_run_is_nothing_to_check(shape, checks, launched):
    check_right(LSTM(3, 5), torch.zeros(shape))
    assert checks == [] and launched == []


def test_without_triton_the_operators_are_the_reference(monkeypatch, launched):
    monkeypatch.setattr(triton, "INSTALLED", False)
    monkeypatch.setitem(sys.modules, "lstm_fused.kernels", None)  # which cannot be imported then
    module, x = small()
    monkeypatch.setattr(table, "ENGINES", (table.REFERENCE,))
    wanted = outcome(module, x)
    monkeypatch.setattr(table, "ENGINES", (table.REFERENCE,))
    monkeypatch.setattr(lstm_fused.functional, "DEFAULT_OPERATORS", {"reference": "triton_or_reference"})
    assert all(map(torch.equal, outcome(module, x), wanted)) and launched == []


def test_by_name_it_is_checked_too_but_runs_where_no_check_can(checks, launched, monkeypatch):
    module, x = small()
    module.engine = "triton"
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(guard, "capturing", lambda device: True)
            module(x)
        assert checks == [] and launched == ["forward resident"]
        module(x)
    assert checks == ["forward resident"]


def test_launched_without_a_guard_choose_decides(launched):
    t = check.problem(choose.choose(SMALL, choose.card_at(CPU)), SMALL, 4, False)
    launch.forward(*t)
    assert launched == ["forward resident"]


def test_without_inputs_there_is_something_to_launch_and_without_cells_nothing(launched):
    with torch.no_grad():
        weights = torch.randn(4 * 5, 0), torch.randn(4 * 5, 5)
        found = lstm_fused.lstm(torch.zeros(3, 2, 0), *weights, engine="triton")[0]
        close(found, lstm_fused.lstm(torch.zeros(3, 2, 0), *weights, engine="reference")[0])
        assert launched
        launched.clear()
        y = lstm_fused.lstm(torch.zeros(3, 2, 4), torch.zeros(0, 4), torch.zeros(0, 0), engine="triton")[0]
        assert y.shape == (3, 2, 0) and not launched
