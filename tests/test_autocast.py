"""Autocast: layers cast their inputs, sum in float32 and return gradients in the parameters' dtype."""

from itertools import product

import pytest
import torch
from cases import DEVICE
from harness import ENGINES_HERE, pack_sequence
from torch import nn

import lstm_fused
from lstm_fused import LSTM, LSTMCell, functional
from lstm_fused.contract import PLAIN

HALF = (torch.bfloat16, torch.float16)
SERVING = [(e.name, dtype) for e in ENGINES_HERE for dtype in HALF if dtype in e.dtypes]
each_dtype = pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])


def run(module, x, hx, dtype=None, inside=True):
    """Return outputs, states and gradients; ``dtype`` turns autocast on, for backward if ``inside``."""
    x = x.clone().requires_grad_()
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        y, (h, c) = module(x, hx)
        loss = y.float().square().sum() + c.float().sum()
        if inside:
            grads = torch.autograd.grad(loss, [x, *module.parameters()])
    if not inside:
        grads = torch.autograd.grad(loss, [x, *module.parameters()])
    return y, h, c, *grads


@each_dtype
@pytest.mark.parametrize("inside", [False, True], ids=["backward-outside", "backward-inside"])
def test_equals_a_module_of_that_dtype(dtype, inside):
    torch.manual_seed(0)
    module = LSTM(5, 16, 2, proj_size=3)
    x, hx = torch.randn(6, 3, 5), (torch.randn(2, 3, 3), torch.randn(2, 3, 16))
    found = run(module, x, hx, dtype, inside)
    half = LSTM(5, 16, 2, proj_size=3, dtype=dtype)
    half.load_state_dict(module.state_dict())
    expected = run(half, x.to(dtype), tuple(s.to(dtype) for s in hx))
    assert all(o.dtype == dtype for o in found[:3])
    assert all(g.dtype == torch.float32 for g in found[3:])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype))


@pytest.mark.parametrize(("engine", "dtype"), SERVING, ids=str)
def test_sums_and_the_cell_state_stay_float32(engine, dtype):
    """A long sum of small numbers would stop growing in half precision."""
    T = 600
    module = LSTM(1, 1, peephole=False, engine=engine)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.bias_ih_l0.copy_(torch.tensor([-5.0, 30.0, 30.0, 30.0]))  # i = 0.0067, f = g = o = 1
        with torch.autocast(DEVICE, dtype):
            _, (_, c) = module(torch.zeros(T, 1, 1))
    assert c.dtype == dtype
    i = torch.tensor(-5.0).sigmoid()
    torch.testing.assert_close(c.item(), (T * i).item(), rtol=torch.finfo(dtype).eps, atol=0)


@each_dtype
def test_float64_is_not_cast(dtype):
    module, x = LSTM(5, 7, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    for ours, exact in zip(run(module, x, None, dtype), run(module, x, None), strict=True):
        assert torch.equal(ours, exact)
    with (
        torch.autocast(DEVICE, dtype),
        pytest.raises(ValueError, match=r"expected torch.float64 like the para"),
    ):
        module(x.float())


@each_dtype
def test_inputs_may_have_any_smaller_dtype(dtype):
    module, x = LSTM(5, 7), torch.randn(4, 3, 5)
    hx = torch.randn(1, 3, 7, dtype=dtype), torch.randn(1, 3, 7)
    with torch.autocast(DEVICE, dtype):
        assert torch.equal(module(x)[0], module(x.to(dtype))[0])
        assert module(x, hx)[0].dtype == dtype
        h, c = LSTMCell(5, 7)(x[0], (hx[0][0], hx[1][0]))
        assert h.dtype == c.dtype == (torch.float32 if DEVICE == "cpu" else dtype)
        packed, _ = module(pack_sequence([x[:, 0], x[:2, 1]]))
        assert packed.data.dtype == dtype
        y, _ = lstm_fused.lstm(x, module.weight_ih_l0, module.weight_hh_l0.to(dtype))
        assert y.dtype == dtype
    assert module(x)[0].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by Dynamo
def test_compiles():
    module, x = LSTM(5, 7, bidirectional=True), torch.randn(4, 3, 5)
    expected = run(module, x, None, torch.bfloat16, inside=False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(run(compiled, x, None, torch.bfloat16, inside=False), expected, strict=True):
        assert ours.dtype == eager.dtype
        torch.testing.assert_close(ours, eager)


def test_the_engine_is_chosen_for_the_autocast_dtype(monkeypatch):
    asked = []
    monkeypatch.setattr(functional, "select", lambda *wanted: asked.append(wanted) or "reference")
    with torch.autocast(DEVICE, torch.float16):
        LSTM(5, 7, engine="cpp")(x := torch.zeros(4, 3, 5))
    assert asked == [("cpp", x.device, torch.float16, PLAIN)]


@pytest.mark.skipif(DEVICE != "cpu", reason="about CPUs")
@pytest.mark.filterwarnings("ignore::lstm_fused.SlowEngineWarning")  # float16
@pytest.mark.parametrize("autocast", HALF, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cell_on_the_cpu_returns_the_dtypes_of_torchs(dtype, autocast):
    ours, theirs = LSTMCell(5, 7, dtype=dtype), nn.LSTMCell(5, 7, dtype=dtype)
    kinds = torch.float32, torch.bfloat16
    for of_x, of_c in product(kinds, (None, *kinds)):
        x = torch.randn(3, 5, dtype=of_x)
        for of_h in kinds if of_c else (None,):
            hx = None if of_c is None else (torch.zeros(3, 7, dtype=of_h), torch.zeros(3, 7, dtype=of_c))
            with torch.autocast("cpu", autocast):
                found, wanted = ours(x, hx), theirs(x, hx)
                alone = ours(x[0], hx and (hx[0][0], hx[1][0]))
            given = [state.dtype for state in (*found, *alone)]
            assert given == [state.dtype for state in wanted] * 2, (of_x, of_h, of_c)
