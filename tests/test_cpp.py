"""The C++ engine: instruction sets, sigmoid and tanh, threads, checks."""

import copy
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES, EVERY_VARIANT, NAMES, PLAIN, Case, make_tensors
from harness import results
from oracle import EXTENDED
from torch.utils.data import DataLoader, Dataset

import lstm_fused
from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends import cpp
from lstm_fused.contract import Variant

TESTS = Path(__file__).parent
if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)


def run_with(isa, *arguments):
    environment = os.environ | {"LSTM_FUSED_ISA": isa}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=TESTS
    )


@pytest.mark.parametrize("isa", [isa for isa in cpp.isas() if isa != cpp.isa()])
def test_every_other_instruction_set_of_this_machine(isa):
    inexact = "(test_outputs_and_gradients or test_variants) and (float32 or bfloat16)"
    chosen = f"test_saved_gates or test_gradcheck or ({inexact})"
    own = "units_in_the_last_place or at_the_ends"
    files = ("test_engines.py", "test_cpp.py")
    done = run_with(isa, "-m", "pytest", "-q", *files, "-k", f"(cpp and ({chosen})) or {own}")
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_instruction_set_this_machine_lacks_is_an_error():
    done = run_with("mmx", "-m", "lstm_fused")
    assert 'LSTM_FUSED_ISA is "mmx", but this machine runs' in done.stdout
    shown = run_with("generic", "-m", "lstm_fused").stdout
    assert shown.rstrip().endswith("Instruction set of the C++ engine: generic")


def gates_of(a):
    """Return the engine's sigmoid(a) and tanh(a): with these weights, x is the pre-activation."""
    zeros = torch.zeros(len(a), 1, dtype=a.dtype)
    w_ih, w_hh = torch.ones(4, 1, dtype=a.dtype), torch.zeros(4, 1, dtype=a.dtype)
    gates = forward_op["cpp"](a[None, :, None], w_ih, w_hh, *[None] * 4, zeros, zeros, None, False, True)[4]
    return gates[0, :, 0], gates[0, :, 2]


# Largest error in ulps; in bfloat16 only its rounding.
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 2), (torch.float64, 2), (torch.bfloat16, 0.501)],
    ids=["float32", "float64", "bfloat16"],
)
def test_sigmoid_and_tanh_are_within_two_units_in_the_last_place(dtype, most):
    if dtype == torch.float64 and not EXTENDED:
        pytest.skip("numpy has no precision beyond float64 here")
    generator = torch.Generator().manual_seed(0)
    spread = [
        torch.randn(100_000, generator=generator, dtype=torch.float64) * s
        for s in (1e-6, 0.03, 0.5, 3, 20, 90)
    ]
    a = torch.cat([*spread, torch.linspace(-110, 110, 100_001, dtype=torch.float64)]).to(dtype)
    if dtype == torch.bfloat16:
        a = a[a.abs() < 80]  # processors treat bfloat16 subnormals as zero
    exact = a.double().numpy().astype(np.longdouble)
    for name, ours, value in zip(
        ("sigmoid", "tanh"), gates_of(a), (1 / (1 + np.exp(-exact)), np.tanh(exact)), strict=True
    ):
        finfo = torch.finfo(dtype)
        power = np.ldexp(np.longdouble(0.5), np.frexp(np.abs(value))[1])  # largest power of two <= value
        ulp = finfo.eps * np.maximum(power, finfo.smallest_normal)
        off = np.abs(ours.double().numpy().astype(np.longdouble) - value) / ulp
        assert off.max() <= most, f"{name} is off by {off.max():.3f} at {a[int(off.argmax())]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_sigmoid_and_tanh_at_the_ends(dtype):
    ends = torch.tensor([-torch.inf, -1e30, -0.0, 0.0, 1e30, torch.inf, torch.nan], dtype=dtype)
    sigmoid, tanh = gates_of(ends)
    torch.testing.assert_close(sigmoid, torch.sigmoid(ends), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(tanh, torch.tanh(ends), rtol=0, atol=0, equal_nan=True)


def test_terms_of_x_do_not_add_to_the_rounding_of_those_of_h():
    """Both are one sum; in the other order its error is 1.5 times the reference's."""

    def rms(layer, truth, x):
        with torch.no_grad():
            return (layer(x)[0].double() - truth(x.double())[0]).square().mean().sqrt().item()

    torch.manual_seed(0)
    ours, step = (lstm_fused.LSTM(64, 96, engine=engine) for engine in ("cpp", "reference"))
    step.load_state_dict(ours.state_dict())
    truth = copy.deepcopy(step).double()
    x = torch.randn(6, 16, 64)
    assert rms(ours, truth, x) <= 1.2 * rms(step, truth, x)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SIZES = {"T": 9, "B": 37, "I": 65, "H": 130, "lengths": (9, 4, 0) * 12 + (7,)}
BIG, VARIED = replace(PLAIN, **SIZES), replace(EVERY_VARIANT, **SIZES)


@pytest.mark.parametrize(
    "case",
    [
        BIG,
        replace(BIG, P=70, reverse=True),
        replace(BIG, B=150, lengths=None),
        VARIED,
        replace(VARIED, P=70, reverse=True),
        replace(VARIED, B=2, lengths=(9, 4)),
    ],
)
def test_results_do_not_depend_on_the_number_of_threads(case, threads):
    found = []
    for n in (1, 2, 2, 3, 5):
        threads(n)
        found.append(results("cpp", case, torch.float64))
    one, two, again, *more = found
    for name, value in one.items():
        assert torch.equal(two[name], again[name]), f"{name} differs from run to run"
        for other in (two, *more):
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-13, msg=name)


def test_two_python_threads_at_once():
    expected = results("cpp", BIG, torch.float64)
    wrong = []

    def work():
        for _ in range(10):
            ours = results("cpp", BIG, torch.float64)
            wrong.extend(
                n for n, v in ours.items() if not torch.allclose(v, expected[n], rtol=1e-12, atol=1e-13)
            )

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Encoded(Dataset):
    """A data set that runs an LSTM per item."""

    lstm = lstm_fused.LSTM(65, 130, engine="cpp")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return self.lstm(torch.full((9, 37, 65), float(index)))[0]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_inside_a_data_loader_worker_after_a_fork():
    data = Encoded()
    expected = [data[i] for i in range(len(data))]  # start the thread pool before the fork
    loaded = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for ours, value in zip(loaded, expected, strict=True):
        torch.testing.assert_close(ours, value)


def operands(case):
    """Return the arguments of the forward operator, in order."""
    t = make_tensors(case, torch.float32)
    given = {n: t[n] for n in NAMES} | {"lengths": torch.tensor([2, 1, 2]), "reverse": False, "save": True}
    return given | dict.fromkeys(Variant._fields)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(2, 3), "x, h0 and c0 must have 3, 2 and 2 dimensions"),
        ("x", torch.zeros(2, 3, 5).half(), "x must be bfloat16, float32 or float64"),
        ("weight_ih", torch.zeros(28, 6), "weight_ih must have shape [28, 5]"),
        ("weight_hh", torch.zeros(27, 7), "weight_hh must have shape [28, 7]"),
        ("bias_ih", torch.zeros(7), "bias_ih must have shape [28]"),
        ("bias_hh", torch.zeros(28).double(), "bias_hh must be Float, got Double"),
        ("peephole", torch.zeros(3, 7).double(), "peephole must be Float, got Double"),
        ("peephole", torch.zeros(21), "peephole must have shape [3, 7]"),
        ("h0", torch.zeros(3, 6), "without weight_hr, h0 must be as wide as c0"),
        ("c0", torch.zeros(2, 7), "c0 must have shape [3, 7]"),
        ("lengths", torch.tensor([2, 3, 1]), "lengths[1] must be in [0, 2], got 3"),
        ("lengths", torch.tensor([2, -1, 1]), "lengths[1] must be in [0, 2], got -1"),
        ("lengths", torch.tensor([2, 1]), "lengths must have shape [3]"),
        ("weight_ih", None, "without weight_ih, x must be [T, B, 4H]"),
        ("gain_hh", torch.zeros(7), "gain_hh must have shape [28]"),
        ("h_mask", torch.zeros(2, 7), "h_mask must have shape [3, 7]"),
        ("zoneout_h", torch.zeros(2, 3, 6), "zoneout_h must have shape [2, 3, 7]"),
        ("zoneout_c", torch.zeros(2, 3, 7).double(), "zoneout_c must be Float, got Double"),
    ],
)
def test_the_operator_refuses_unsafe_arguments(name, value, message):
    arguments = operands(replace(PLAIN, T=2, I=5, H=7)) | {name: value}
    with pytest.raises(RuntimeError, match="lstm_fused: ") as caught:
        forward_op["cpp"](*arguments.values())
    assert message in str(caught.value)


@pytest.mark.skipif(not EXTENDED, reason="numpy has no precision beyond float64 here")
def test_long_sums_lose_no_digits_in_float64():
    t = make_tensors(Case("long", T=3000, B=1, I=2, H=5), torch.float64)
    inputs = tuple(t[name] for name in NAMES)
    y, *_, c, gates = forward_op["cpp"](*inputs, None, False, True)
    saved = (c, gates, t["c0"], t["weight_hh"], t["peephole"], None, None, False)
    dxw, _, _, dbias, *_ = backward_op["cpp"](y.sign(), None, None, *saved)
    sums = dxw.numpy().astype(np.longdouble)[:, 0].cumsum(0)
    off = np.abs(dbias.numpy() - sums[-1]) / np.abs(sums).max(0)
    assert off.max() <= torch.finfo(torch.float64).eps, f"error of {off.max() / 2**-52:.1f} ulps"


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_infinite_sums_stay_infinite_in_float64(poison):
    t = make_tensors(replace(PLAIN, T=4), torch.float64)
    inputs = tuple(t[name] for name in NAMES)
    y, *_, c, gates = forward_op["reference"](*inputs, None, False, True)
    dy = torch.zeros_like(y)
    dy[0, 1, 3] = poison
    saved = (c, gates, t["c0"], t["weight_hh"], t["peephole"], None, None, False)
    ours, exact = (backward_op[engine](dy, None, None, *saved)[3] for engine in ("cpp", "reference"))
    assert not exact.isfinite().all()
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_backward_refuses_a_forward_pass_that_saved_nothing():
    t = operands(replace(PLAIN, T=2, I=5, H=7)) | {"save": False}
    y, h_n, c_n, c, gates = forward_op["cpp"](*t.values())
    with pytest.raises(RuntimeError, match="was the forward pass asked to save"):
        backward_op["cpp"](y, h_n, c_n, c, gates, t["c0"], t["weight_hh"], t["peephole"], None, None, False)


def fastest(*calls):
    """The least processor time of this thread in each call, in turn, which other processes hardly change."""
    times = [[] for _ in calls]
    for _ in range(15):
        for call, of_call in zip(calls, times, strict=True):
            start = time.thread_time()
            call()
            of_call.append(time.thread_time() - start)
    return [min(of_call) for of_call in times]


def test_subnormal_states_are_fast(threads):
    threads(1)
    # A cell state that halves at every step is subnormal in most of 1,000 steps.
    T, B, H = 1000, 4, 256
    w_ih, w_hh, bias = torch.zeros(4 * H, 1), torch.zeros(4 * H, H), torch.zeros(4 * H)
    x, h0 = torch.zeros(T, B, 1), torch.zeros(B, H)

    def forward(c0):
        inputs = (x, w_ih, w_hh, bias, None, None, None, h0, torch.full((B, H), c0), None, False, False)
        return lambda: forward_op["cpp"](*inputs)

    tiny, zero = fastest(forward(1e-30), forward(0.0))
    assert tiny < 1.25 * zero


def test_subnormal_inputs_and_gradients_are_fast(threads):
    threads(1)
    t = make_tensors(replace(PLAIN, T=50, B=16, I=64, H=64, bias=False), torch.float32)
    weights = (t["weight_ih"], t["weight_hh"], None, None, t["peephole"], None)

    def forward(scale):
        x, h0, c0 = (t[name] * scale for name in ("x", "h0", "c0"))
        return lambda: forward_op["cpp"](x, *weights, h0, c0, None, False, False)

    y, *_, c, gates = forward_op["cpp"](t["x"], *weights, t["h0"], t["c0"], None, False, True)
    saved = (c, gates, t["c0"], t["weight_hh"], t["peephole"], None, None, False)

    def backward(scale):
        dy = y * scale
        return lambda: backward_op["cpp"](dy, None, None, *saved)

    dxw = backward(1e-42)()[0]
    assert not ((dxw != 0) & (dxw.abs() < torch.finfo().tiny)).any(), "dxw has subnormal numbers"
    for of_scale in forward, backward:
        tiny, zero = fastest(of_scale(1e-42), of_scale(0.0))
        assert tiny < 1.25 * zero, of_scale.__name__


def test_large_gates_with_streaming_stores():
    case = Case("large", T=33, B=66, I=8, H=256)  # 8.9 MB of gates
    for name, value in results("cpp", case, torch.float32).items():
        exact = results("reference", case, torch.float64)[name]
        torch.testing.assert_close(
            value.double(), exact, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_memory_is_reused_only_after_release():
    t = operands(replace(PLAIN, T=64, B=3, I=37, H=130)) | {"lengths": None}
    first = forward_op["cpp"](*t.values())
    kept, places = [out.clone() for out in first], {out.data_ptr() for out in first}
    second = forward_op["cpp"](*t.values())
    assert places.isdisjoint(out.data_ptr() for out in second)
    assert all(map(torch.equal, first, kept)), "a second call changed what the first returned"
    gates = first[4].data_ptr()
    del first
    assert gates in {out.data_ptr() for out in forward_op["cpp"](*t.values())}, "memory was not reused"


@pytest.mark.parametrize("T", [2, 64])
def test_large_results_cannot_grow_in_place(T):
    """Large results are in the engine's memory (64 KB and more), which PyTorch may not resize."""
    y = forward_op["cpp"](*operands(replace(PLAIN, T=T, B=3, I=37, H=130)).values())[0]
    before = y.clone()
    if y.nbytes < 2**16:
        y.resize_(2 * T, 3, 130)
    else:
        with pytest.raises(RuntimeError, match="not resizable"):
            y.resize_(2 * T, 3, 130)
        with pytest.raises(RuntimeError, match="not resizable"):
            y.untyped_storage().resize_(0)
    assert torch.equal(y[:T], before)
    assert torch.equal(before.resize_(2 * T, 3, 130)[:T], y[:T]), "a copy can grow"


@pytest.mark.parametrize("T", [2, 64])
def test_the_profiler_names_the_operators(T):
    module, x = lstm_fused.LSTM(37, 130, engine="cpp"), torch.randn(T, 3, 37, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        module(x)[0].sum().backward()
    counted = {event.key: event.count for event in seen.key_averages()}
    for name in ("cpp_forward", "cpp_gradients"):
        assert counted[f"lstm_fused::{name}"] == 1


def test_cases_reach_every_tile_height():
    # Micro-kernels of one to fourteen rows are separate instantiations; the cases must reach all of them.
    assert {case.B for case in CASES} >= {1, 3, 4, 16, 17, 131}
