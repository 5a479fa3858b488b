"""The check of kernels before they are trusted: what it notices, what then runs, and what is remembered."""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from concurrently import concurrently
from lstm_fused.kernels import check, choose, cooperative, guard, launch, resident, scratch, steps, verdicts
from lstm_fused.kernels.choose import Layer
from planting import planted
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused
from lstm_fused import LSTM, ArgumentError
from lstm_fused.backends import table, triton

CPU = torch.device("cpu")
SMALL = Layer("forward", 5, 3, torch.float32, "tf32")
close = torch.testing.assert_close


def forget():
    """What a new process does not know."""
    for known in (guard._decided, guard._warned, verdicts._known):
        known.clear()
    for cached in (verdicts.machine, verdicts.sources):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch, tmp_path):
    """Triton stands first, nothing is known, and what is found stays in a folder of this test."""
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "verdicts"))
    monkeypatch.delenv("LSTM_FUSED_KERNEL", raising=False)
    monkeypatch.setattr(table, "ENGINES", (table.TRITON, table.REFERENCE))
    forget()
    yield
    forget()


@pytest.fixture
def checks(monkeypatch):
    """The plans that are checked, in order."""
    done, plain = [], check.check
    monkeypatch.setattr(
        check, "check", lambda *a: [done.append(f"{a[1].direction} {a[0].kernel}"), plain(*a)][1]
    )
    return done


class Kernel:
    """A kernel that notes its launches and does something wrong."""

    def __init__(self, kernel, launched, name, fault):
        self.kernel, self.launched, self.name, self.fault = kernel, launched, name, fault

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.launched.append(self.name)
            self.fault(lambda: self.kernel[grid](*arguments, **options), arguments)

        return run


def right(run, arguments):
    run()


class Launched(list):
    """What is launched, as "direction kernel"."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def plant(self, direction, kernel, fault):
        """Let a kernel do something wrong from now on."""
        module = steps if kernel == "step" else resident
        name = f"lstm_{direction}_{kernel}_kernel"
        plain = getattr(module, name)
        plain = plain.kernel if isinstance(plain, Kernel) else plain
        self.patch.setattr(module, name, Kernel(plain, self, f"{direction} {kernel}", fault))


@pytest.fixture
def launched(monkeypatch):
    found = Launched(monkeypatch)
    for direction in ("forward", "backward"):
        for kernel in ("resident", "step"):
            found.plant(direction, kernel, right)
    return found


def outcome(module, x):
    """The outputs and all gradients."""
    y, (h_n, c_n) = module(x)
    grads = torch.autograd.grad(y.cos().sum() + h_n.sum() + c_n.sum(), list(module.parameters()))
    return y, h_n, c_n, *grads


def check_right(module, x):
    """It gives what the reference gives."""
    found = outcome(module, x)
    engine, module.engine = module.engine, "reference"
    close(found, outcome(module, x))
    module.engine = engine


def small():
    return LSTM(3, 5), torch.randn(2, 3, 3)


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
    check_right(LSTM(4, 6), torch.randn(3, 2, 4))  # H in whole tiles is the same
    assert len(checks) == 2 and launched == ["forward resident", "backward resident"] * 2
    check_right(LSTM(4, 17), torch.randn(3, 2, 4))
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


Y, REVERSE, DXW = 9, 15, 11  # where the sequence kernels have the first two, and steps.backward the last


def wrong_numbers(run, arguments):
    run()
    arguments[Y].mul_(1.1)


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


def fails(run, arguments):
    raise RuntimeError("out of resource: shared memory")


other_bits_each_time.turn = 0
FAULTS = {
    wrong_numbers: r"y is off by \S+ where \S+ is allowed, T=4, reverse=False",
    wrong_in_the_second_tile: r"y is off by \S+ where",
    wrong_past_the_lengths: r"y is off by \S+ where",
    nothing_done_in_reverse: r"y is off by inf where \S+ is allowed, T=4, reverse=True",
    other_bits_each_time: "y differs from run to run",
    fails: "RuntimeError: out of resource: shared memory",
}


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
        LSTM(3, 6)(x)  # of the same plan
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
    layer, card = Layer("forward", 256, 16, torch.bfloat16, "ieee"), choose.CARDS[1]
    assert choose.choose(layer, card).kernel == "persistent"
    assert [plan.kernel for plan in guard.candidates(layer, card, False)] == ["persistent"]
    all_kernels = ["persistent", "cooperative", "step"]
    for tested, kernels in (((), ["step"]), (("sm_90",), all_kernels), (("A100",), ["step"])):
        monkeypatch.setattr(guard, "WAITING_TESTED", tested)
        assert [plan.kernel for plan in guard.candidates(layer, card, True)] == kernels


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


def cache_files():
    return sorted(Path(verdicts.cache_folder()).rglob("*"))


PROGRAM = """
import os, sys, torch
import mending
from lstm_fused import LSTM
from lstm_fused.backends import table
from lstm_fused.kernels import check
table.ENGINES = table.TRITON, table.REFERENCE
check.check = lambda *a: sys.exit("checked again")
with torch.no_grad():
    print(LSTM(3, 5)(torch.zeros(2, 3, 3))[0].shape)
"""


def test_another_process_reads_what_this_one_found(launched):
    module, x = small()
    launched.plant("forward", "resident", wrong_numbers)
    with pytest.warns(RuntimeWarning), torch.no_grad():
        module(x)
    command = [sys.executable, "-W", "always", "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parent, text=True, capture_output=True)
    assert done.stdout.strip() == "torch.Size([2, 3, 5])", done.stderr
    assert "resident kernel was not right" in done.stderr


@pytest.mark.parametrize("what", ["kernels", "card", "driver"])
def test_what_has_changed_is_checked_again(what, checks, monkeypatch, tmp_path):
    module, x = small()
    with torch.no_grad():
        module(x)
        forget()
        module(x)
        assert len(checks) == 1
        forget()
        if what == "kernels":
            copy = shutil.copytree(verdicts.SOURCES, tmp_path / "kernels")
            monkeypatch.setattr(verdicts, "SOURCES", copy)
            module(x)
            assert len(checks) == 1, "the same sources elsewhere"
            forget()
            with (copy / "cell.py").open("a") as file:
                file.write("# changed\n")
        else:
            name = {"card": "card_name", "driver": "driver"}[what]
            monkeypatch.setattr(verdicts, name, lambda *_: "another")
        module(x)
    assert len(checks) == 2


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"right": 1, "said": ""}', b'{"right": true}']
)
def test_a_damaged_file_is_as_good_as_none(text, checks):
    module, x = small()
    with torch.no_grad():
        module(x)
        (file,) = [path for path in cache_files() if path.is_file()]
        whole = file.read_bytes()
        file.write_bytes(text)
        forget()
        module(x)
    assert len(checks) == 2 and file.read_bytes() == whole


def folder_under_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "file" / "inside"))


def folder_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "file"))


def disk_is_full(monkeypatch, tmp_path):
    def write_text(self, text):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)


def no_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LSTM_FUSED_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.parametrize(
    "trouble", [folder_under_a_file, folder_is_a_file, disk_is_full, no_home], ids=lambda f: f.__name__
)
def test_where_nothing_can_be_kept_each_process_checks(trouble, checks, monkeypatch, tmp_path):
    trouble(monkeypatch, tmp_path)
    module, x = small()
    with torch.no_grad():
        module(x)
        module(x)
        assert len(checks) == 1
        forget()
        module(x)
    assert len(checks) == 2 and verdicts.on_record(CPU) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert not list(tmp_path.rglob("*.json*")) and len([p for p in tmp_path.rglob("*") if p.is_file()]) <= 1


def test_the_folder_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(verdicts.cache_folder()).endswith("/verdicts")
    monkeypatch.delenv("LSTM_FUSED_CACHE")
    assert verdicts.cache_folder() == Path("/elsewhere/lstm_fused")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert verdicts.cache_folder() == Path.home() / ".cache" / "lstm_fused"


def test_what_another_process_may_find_otherwise_is_not_kept(monkeypatch, launched):
    launched.plant("forward", "resident", fails)
    plan = choose.choose(SMALL, choose.card_at(CPU))
    guard.judge(plan, SMALL, CPU)
    assert verdicts.on_record(CPU) == []
    forget()
    monkeypatch.setattr(check, "broken", lambda device: True)
    guard.judge(plan, SMALL, CPU)
    (kept,) = verdicts.on_record(CPU)
    assert not kept.right and "out of resource" in kept.said


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


def test_the_record_is_printed_and_can_be_made_anew(monkeypatch, capsys, launched, checks):
    from lstm_fused import __main__

    monkeypatch.setattr(guard, "KINDS", ((torch.float32, "tf32"),))
    monkeypatch.setattr(guard.check_usual, "__defaults__", (((5, 3), (6, 3)),))
    step_backward = steps.backward

    def wrong(*arguments):
        found = step_backward(*arguments)
        arguments[DXW].mul_(1.1)
        return found

    monkeypatch.setattr(steps, "backward", wrong)
    monkeypatch.setattr(sys, "argv", ["lstm_fused", "--check"])
    before = torch.get_float32_matmul_precision()
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("right", "WRONG"))]
    assert ended.value.code == 1 and torch.get_float32_matmul_precision() == before
    assert [line.split("_")[0] + " " + line.split("_")[1] for line in first] == [
        "right  forward resident",
        "right  forward step",
        "right  backward resident",
        "WRONG  backward step",
    ]
    monkeypatch.setattr(sys, "argv", ["lstm_fused"])
    forget()
    with pytest.raises(SystemExit):
        __main__.main()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("right", "WRONG"))]
    assert sorted(again) == sorted(first) and len(checks) == 4


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


def test_launched_without_a_guard_the_table_decides(launched):
    t = check.problem(choose.choose(SMALL, choose.card_at(CPU)), SMALL, check.T, False)
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


def test_a_plan_that_waited_in_vain_is_no_verdict_for_others(monkeypatch):
    layer = Layer("forward", 5, 3, torch.float32, "tf32")
    plan = choose.choose(layer, choose.card_at(CPU))
    late = scratch.timeout_flag_on(CPU)
    monkeypatch.setattr(
        check, "poisoned", lambda run, operands, plan: [late.fill_(1), run(*operands, plan=plan)][1]
    )
    found = check.check(plan, layer, CPU)
    assert not found.right and not found.lasting and "timed out" in found.said
    assert not scratch.timed_out(CPU)


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
