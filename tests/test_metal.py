"""The Metal engine without a Mac: its kernels run as C++ (tests/metal/), on CPU tensors."""

from dataclasses import replace
from itertools import product

import harness
import pytest
import torch
from cases import CASES, FINE_CASES, GAINS, NAMES, PLAIN, VARIANTS, Case, make_tensors, shortened
from like_mps import LikeMPS
from lstm_fused.kernels import check, verdicts
from lstm_fused.kernels.metal import launch, library
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer
from metal import mac
from metal.mac import unchecked_mac  # noqa: F401  a fixture
from metal.shader import emulated
from test_on_mps import *  # noqa: F403  its tests run here too
from torch.autograd.gradcheck import GradcheckError

import lstm_fused
from lstm_fused.backends import table

EVERY = next(case for case in VARIANTS if case.name == "every_variant_projection_lengths_reverse")
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
close = torch.testing.assert_close


pytestmark = [
    pytest.mark.skipif(not mac.HERE, reason=mac.LACKING),
    pytest.mark.usefixtures("unchecked_mac"),
]


def short(case: Case, dtype: torch.dtype) -> Case:
    """Few steps: the emulation is slow, and so are PyTorch's products of half precision."""
    return shortened(case, 9 if dtype == torch.float32 and not case.fine else 4)


ALL = [*product((*CASES, *VARIANTS), DTYPES), *product(FINE_CASES, DTYPES[:1])]  # as in test_engines.py


@pytest.mark.parametrize(
    ("case", "dtype"), ALL, ids=[f"{case.name}-{table.short(dtype)}" for case, dtype in ALL]
)
def test_outputs_and_gradients(case, dtype, monkeypatch):
    """Every case, by the kernel that is chosen; in half precision rounding decides whether c is clipped."""
    monkeypatch.setattr(harness, "DRAWS", 4 if dtype == torch.float32 and not case.fine else 2)
    outputs_alone = case.cell_clip is not None and dtype != torch.float32
    wanted = () if outputs_alone else (*NAMES, *GAINS)
    harness.check_against_reference("metal", short(case, dtype), dtype, wanted=wanted)


@pytest.mark.parametrize("case", [case for case in CASES if not case.P], ids=lambda case: case.name)
def test_the_step_kernel_takes_what_the_resident_kernel_takes(case, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", "step")
    monkeypatch.setattr(harness, "DRAWS", 2)
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
@pytest.mark.parametrize("options", [(0, False), (10, False), (0, True), (10, True)])
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


@pytest.mark.parametrize(
    ("change", "error"),
    [(lambda w: w.double().float(), "no float64"), (lambda w: w + 0 * torch.geqrf(w)[0], "MPS has no geqrf")],
)
def test_what_mps_lacks_is_found(change, error, monkeypatch):
    plain = launch.tiled
    monkeypatch.setattr(launch, "tiled", lambda weight, gates: plain(change(weight), gates))
    with pytest.raises((TypeError, NotImplementedError), match=error):
        test_the_host_code_uses_what_mps_has(PLAIN, torch.float32)


def test_storage_offsets_and_strides_are_respected():
    layer = lstm_fused.LSTM(3, 5, proj_size=2)
    x = torch.randn(7, 4, 6)[2:, 1:, ::2]
    y = layer(x)[0]
    layer.engine = "reference"
    close(y, layer(x)[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.as_strided(t.shape, t.stride(), 0),
        lambda t: t.as_strided(t.shape, torch.empty(t.shape).stride()),
    ],
    ids=["offset", "strides"],
)
def test_an_ignored_offset_or_stride_is_found(change, monkeypatch):
    plain = launch.mapped
    monkeypatch.setattr(launch, "mapped", lambda function, record: plain(function, plain(change, record)))
    with pytest.raises(AssertionError, match="not close"):
        test_storage_offsets_and_strides_are_respected()


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


def test_float64_is_refused():
    with pytest.raises(RuntimeError, match="metal: takes float16, bfloat16, float32, not float64"):
        lstm_fused.LSTM(3, 5, engine="metal").double()(torch.zeros(2, 4, 3, dtype=torch.float64))


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


LONG = 7  # steps of the passes that are cut below


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("plan", [Plan("resident", 8, 32), Plan("step", 8)], ids=["resident", "step"])
def test_a_pass_in_pieces_has_the_same_bits(plan, direction):
    options = [(False, False)] if plan.kernel == "resident" else [(False, False), (True, True)]
    for (projection, varied), reverse in product(options, (False, True)):
        layer = Layer(direction, 11, 9, torch.float32, "ieee", 5 * projection, varied)
        operands, run = check.problem(plan, layer, LONG, reverse), getattr(launch, direction)
        events = torch.mps.event.Event.return_value.record
        with torch.no_grad():
            events.reset_mock()
            whole = run(*operands, plan=plan)
            assert not events.called
            for at_once in (1, 3, LONG):
                events.reset_mock()
                pieces = run(*operands, plan=replace(plan, at_once=at_once))
                assert all(map(torch.equal, pieces, whole))
                iterations = LONG + (direction == "backward")
                assert events.call_count == (iterations - 1) // at_once


def test_a_piece_without_da_of_the_one_before_is_found(monkeypatch):
    mac.plant(monkeypatch, "bool known = last >= 0 &&", "bool known = false &&")
    with pytest.raises(AssertionError, match="method equal"):
        test_a_pass_in_pieces_has_the_same_bits(Plan("resident", 8, 32), "backward")


# Faults in the equations: each is found by the test that is named.

FAULTS = {
    "forward": ("real m = o * ", "real m = real(1.00001f) * o * "),
    "backward": ("dc * g * i * (real(1) - i)", "real(1.00001f) * dc * g * i * (real(1) - i)"),
    "unwritten": ("f.gates_all[at + H] = ", "f.gates_all[at] = "),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_equation_fails_the_cases(fault, monkeypatch):
    mac.plant(monkeypatch, *fault)
    with pytest.raises(AssertionError, match="times the reference's error"):
        test_outputs_and_gradients(PLAIN, torch.float32, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_equation_fails_in_float64(fault, monkeypatch, in_float64):
    mac.plant(monkeypatch, *fault)
    with pytest.raises(AssertionError, match="not close"):
        test_only_rounding_differs_from_the_reference(PLAIN.name, None)


@pytest.mark.parametrize("name", ["backward", "unwritten"])
def test_a_wrong_derivative_fails_gradcheck(name, monkeypatch, in_float64):
    mac.plant(monkeypatch, FAULTS[name][0], FAULTS[name][1].replace("1.00001f", "1.01f"))
    with pytest.raises(GradcheckError):
        test_gradients_are_those_of_finite_differences(PLAIN, None)
