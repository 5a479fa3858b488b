"""The Metal engine without a Mac: its kernels run as C++ (tests/metal/), on CPU tensors."""

import platform
import re
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest import mock

import harness
import pytest
import torch
from cases import CASES, GAINS, NAMES, PLAIN, VARIANTS, Case, make_tensors, shortened
from like_mps import LikeMPS
from lstm_fused.kernels import check, guard, metal, scratch, verdicts
from lstm_fused.kernels.metal import dispatches, launch, library
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer
from metal.shader import emulated

import lstm_fused
from bench import mps, roofline_metal
from lstm_fused.autograd import operators
from lstm_fused.backends import metal as backend
from lstm_fused.backends import table

EVERY = next(case for case in VARIANTS if case.name == "every_variant_projection_lengths_reverse")
CPU = torch.device("cpu")
MACHINE, CARD_NAME = verdicts.machine.__wrapped__, verdicts.card_name
FOLDER = Path(metal.__file__).parent
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def as_on_a_mac(monkeypatch, tmp_path):
    """CPU tensors count as a Mac's, and nothing is known of the kernels."""
    monkeypatch.setenv("LSTM_FUSED_GPU", "unchecked")
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path))
    monkeypatch.delenv("LSTM_FUSED_KERNEL", raising=False)
    monkeypatch.setattr(backend, "unavailable", lambda: None)
    monkeypatch.setattr(backend, "serves", lambda tensor: True)
    ready = replace(table.METAL, devices=("cpu",), unavailable=lambda: None)
    monkeypatch.setattr(table, "ENGINES", (ready, table.REFERENCE))
    monkeypatch.setattr(verdicts, "machine", lambda device: "a Mac")
    monkeypatch.setattr(verdicts, "card_name", lambda device: "a Mac")
    here = torch.library.Library("lstm_fused", "IMPL")
    here.impl("metal_forward", partial(operators.forward_kernel, backend.forward), "CPU")
    here.impl("metal_backward", partial(operators.backward_kernel, backend.backward), "CPU")
    for known in (guard._decided, guard._warned, verdicts._known):
        known.clear()
    with emulated():
        yield
    here._destroy()


@pytest.fixture
def nothing_compiled(monkeypatch):
    """As at the start of a process."""
    monkeypatch.setattr(launch, "library", cache(library.library.__wrapped__))


def outcome(layer, x):
    """The output and the gradients of all parameters."""
    y = layer(x)[0]
    return y, *torch.autograd.grad(y.cos().sum(), list(layer.parameters()))


def short(case: Case, dtype: torch.dtype) -> Case:
    """Few steps: the emulation is slow, and so are PyTorch's products of half precision."""
    return shortened(case, 9 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=table.short)
@pytest.mark.parametrize("case", [*CASES, *VARIANTS], ids=lambda case: case.name)
def test_outputs_and_gradients(case, dtype, monkeypatch):
    """Every case, by the kernel that is chosen; in half precision rounding decides whether c is clipped."""
    monkeypatch.setattr(harness, "SEEDS", range(4 if dtype == torch.float32 else 2))
    outputs_alone = case.cell_clip is not None and dtype != torch.float32
    wanted = () if outputs_alone else (*NAMES, *GAINS)
    harness.check_against_reference("metal", short(case, dtype), dtype, wanted=wanted)


@pytest.mark.parametrize("case", [case for case in CASES if not case.P], ids=lambda case: case.name)
def test_the_step_kernel_takes_what_the_resident_kernel_takes(case, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "step")
    monkeypatch.setattr(harness, "SEEDS", range(2))
    harness.check_against_reference("metal", short(case, torch.float32), torch.float32)


@pytest.mark.parametrize("H", [32, 33, 64, 128])
def test_every_width_of_the_resident_kernel(H):
    layer = Layer("forward", H, 9, torch.float32, "ieee")
    (plan, _) = plans(layer)
    assert plan.kernel == "resident"
    for direction in ("forward", "backward"):
        found = check.check(plan, layer._replace(direction=direction), CPU)
        assert found.right, found.said


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True), (True, True)])
def test_every_tile_of_the_step_kernel(direction, options):
    for B in (3, 9, 40):
        layer = Layer(direction, 21, B, torch.float32, "ieee", *options)
        found = check.check(plans(layer, "step")[0], layer, CPU)
        assert found.right, found.said


@pytest.mark.parametrize("dtype", DTYPES, ids=table.short)
@pytest.mark.parametrize("case", [PLAIN, EVERY], ids=["plain", "every_option"])
def test_the_host_code_uses_what_mps_has(case, dtype):
    case = short(case, dtype)
    leaves = {name: t.requires_grad_() for name, t in make_tensors(case, dtype).items() if t is not None}
    with LikeMPS():
        out = harness.call("metal", case, dict.fromkeys(NAMES) | leaves)
        torch.autograd.grad(sum(o.sum() for o in out), list(leaves.values()))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_check_ignores_the_default_device(direction):
    layer = Layer(direction, 5, 3, torch.float32, "ieee")
    scratch.timeout_flag_on.cache_clear()
    with torch.device("meta"):
        for plan in plans(layer):
            found = check.check(plan, layer, CPU)
            assert found.right, found.said


def test_structs_of_the_kernels_are_those_of_the_host():
    text = re.sub("//.*", "", "".join(path.read_text() for path in FOLDER.glob("*.metal")))
    for record in (dispatches.Layer, dispatches.Step, dispatches.Span):
        body = re.search(rf"struct {record.__name__} {{(.*?)}};", text, re.DOTALL)[1]
        fields = [name.strip() for line in re.findall(r"long ([^;]*);", body) for name in line.split(",")]
        assert tuple(fields) == record._fields


def test_sources_are_ascii_and_shipped():
    for path in FOLDER.glob("*.metal"):
        assert path.read_text().isascii() and path.stem in str(library.FILES)


def test_storage_offsets_and_strides_are_respected():
    layer = lstm_fused.LSTM(3, 5, proj_size=2)
    x = torch.randn(7, 4, 6)[2:, 1:, ::2]
    y = layer(x)[0]
    layer.engine = "reference"
    close(y, layer(x)[0])


def test_a_layer_trains_by_default(monkeypatch):
    """Chosen without a name, through the operator that may fall back, after a check."""
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    layer, x = lstm_fused.LSTM(3, 5, 2, bidirectional=True), torch.randn(6, 4, 3, requires_grad=True)
    lengths = torch.tensor([6, 0, 3, 1])
    found = []
    for engine in (None, "reference"):
        layer.engine = engine
        y, (h, c) = layer(x, lengths=lengths)
        found.append(
            (y, h, c, *torch.autograd.grad(y.cos().sum() + h.sum() + c.sum(), [x, *layer.parameters()]))
        )
    close(*found)
    assert len(verdicts._known) == 2  # a plan forward, and one backward


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_kernel_is_replaced_with_a_warning(direction, monkeypatch, nothing_compiled):
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    plain = library.source
    wrong = {
        "forward": ("real m = o * ", "real m = real(1.01f) * o * "),
        "backward": ("da_g = dc", "da_g = -dc"),
    }
    monkeypatch.setattr(
        library,
        "source",
        lambda *a: plain(*a).replace(*wrong[direction], 1 if a[1].kernel == "resident" else 0),
    )
    layer, x = lstm_fused.LSTM(3, 5), torch.randn(6, 4, 3)
    with pytest.warns(RuntimeWarning, match="Metal's resident kernel was not right .* The step kernel runs"):
        found = outcome(layer, x)
    layer.engine = "reference"
    close(found, outcome(layer, x))
    layer.engine = "metal"
    with pytest.raises(RuntimeError, match="Metal's resident kernel was not right"):
        outcome(layer, x)


def test_off_runs_the_reference(monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_GPU", "off")
    monkeypatch.setattr(launch, "library", None)
    layer, x = lstm_fused.LSTM(3, 5), torch.randn(6, 4, 3)
    y = layer(x)[0]
    layer.engine = "reference"
    assert torch.equal(y, layer(x)[0])


def test_kernels_by_name(monkeypatch):
    layer, x = lstm_fused.LSTM(3, 200), torch.randn(2, 4, 3)
    for kernel, error in (
        ("resident", "takes H up to 128"),
        ("persistent", "expected one of 'resident', 'step'"),
    ):
        monkeypatch.setenv("LSTM_FUSED_KERNEL", kernel)
        with pytest.raises(RuntimeError, match=error):
            layer(x)


def test_float64_is_refused():
    with pytest.raises(RuntimeError, match="metal: takes float16, bfloat16, float32, not float64"):
        lstm_fused.LSTM(3, 5, engine="metal").double()(torch.zeros(2, 4, 3, dtype=torch.float64))


def test_each_plan_is_compiled_once(nothing_compiled):
    with mock.patch.object(torch.mps, "compile_shader", side_effect=torch.mps.compile_shader) as compiled:
        for H in (5, 7, 7):
            lstm_fused.LSTM(3, H)(torch.randn(2, 4, 3))[0].sum().backward()
    assert compiled.call_count == 1


def test_nan_and_infinity_propagate():
    for poison in (torch.nan, torch.inf, -torch.inf):
        found = []
        for engine in ("metal", "reference"):
            tensors = make_tensors(shortened(PLAIN, 4), torch.float32)
            tensors["x"][2, 1, 3] = poison
            leaves = [t.requires_grad_() for t in tensors.values() if t is not None]
            out = harness.call(engine, shortened(PLAIN, 4), tensors)
            grads = torch.autograd.grad([o.sum() for o in out], leaves)
            found.append([v.nan_to_num(3, posinf=2, neginf=1) * ~v.isfinite() for v in (*out, *grads)])
        assert all(map(torch.equal, *found))


@pytest.fixture
def in_float64(monkeypatch):
    """The same text with double for float."""
    monkeypatch.setitem(library.TYPES, torch.float64, ("float", "float"))
    ready = replace(table.ENGINES[0], dtypes=(torch.float64,))
    monkeypatch.setattr(table, "ENGINES", (ready, table.REFERENCE))
    with emulated(mode="double"):
        yield


@pytest.mark.parametrize(
    "name", ["plain", "lengths_reverse", "projection_lengths", "many_channels", EVERY.name]
)
def test_only_rounding_differs_from_the_reference(name, in_float64):
    case = shortened(next(case for case in (*CASES, *VARIANTS) if case.name == name), 6)
    found = [harness.results(engine, case, torch.float64) for engine in ("metal", "reference")]
    for name, value in found[0].items():
        close(value, found[1][name], rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", [PLAIN, EVERY], ids=["resident", "step"])
def test_gradients_are_those_of_finite_differences(case, in_float64):
    lengths = None if case.lengths is None else (2, 0, 3)
    case = replace(case, T=3, B=3, I=2, H=3, P=2 if case.P else 0, lengths=lengths)
    tensors = make_tensors(case, torch.float64)
    names = [name for name, tensor in tensors.items() if tensor is not None]

    def function(*leaves):
        return harness.call("metal", case, tensors | dict(zip(names, leaves, strict=True)))

    assert torch.autograd.gradcheck(function, [tensors[name].requires_grad_() for name in names])


def test_verdicts_hold_for_a_chip_a_macos_and_a_math_mode(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M9")
    monkeypatch.setattr(verdicts, "card_name", CARD_NAME)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("99.1", ("", "", ""), "arm64"))
    name = MACHINE(torch.device("mps"))
    assert name.startswith("Apple-M9_torch") and "_macos99.1_" in name
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", "1")
    assert MACHINE(torch.device("mps")) == name.replace("_macos99.1_", "_macos99.1-fastmath1_")


def test_the_table_to_send_in(monkeypatch, capsys):
    monkeypatch.setattr(mps, "TIMED", (Case("tiny", T=3, B=2, I=3, H=4),))
    mps.print_table("cpu", 1)
    header, _, row, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("| size | (T, B, I, H) | metal | reference |") and header.count(
        "|"
    ) == row.count("|")
    assert "failed" not in row


def test_the_table_is_complete_where_a_kernel_is_wrong(monkeypatch, capsys):
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    monkeypatch.setattr(library, "source", lambda *a: "what Apple's compiler refuses")
    monkeypatch.setattr(launch, "library", library.library.__wrapped__)
    monkeypatch.setattr(mps, "TIMED", (Case("tiny", T=3, B=2, I=3, H=4),) * 2)
    mps.print_table("cpu", 1)
    header, _, *rows, _, why = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all(row.count("|") == header.count("|") for row in rows)
    assert all(row.split(" | ")[2:3] == ["failed"] and row.count("failed") == 1 for row in rows)
    assert why.startswith("failed: metal: Metal's resident kernel was not right on a Mac: CompileError")


def test_predictions_prefer_the_chosen_kernel():
    for chip, H, B in product(roofline_metal.CHIPS, (64, 128, 256, 512, 1024), (1, 16, 64)):
        for direction in ("forward", "backward"):
            layer = Layer(direction, H, B, torch.float32, "ieee")
            times = [roofline_metal.predict(plan, layer, chip) for plan in plans(layer)]
            assert times[0] <= 1.25 * min(times) and times[0] < roofline_metal.reference(layer, chip)


def test_plans():
    layer = Layer("forward", 128, 16, torch.float32, "ieee")
    assert plans(layer) == [Plan("resident", 8, 128), Plan("step", 16)]
    assert plans(layer._replace(H=129, B=17)) == [Plan("step", 32)]
    for option in ("varied", "projection"):
        assert plans(layer._replace(**{option: True}, B=8)) == [Plan("step", 8)]
