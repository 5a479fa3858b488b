"""Faults of a step's arguments that the C++ engine finds first: errors name the argument all the same."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lstm_fused import ArgumentError, LSTMCell
from lstm_fused.backends import cpp

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

zeros = torch.zeros
X, H0, C0 = zeros(3, 5), zeros(3, 7), zeros(3, 7)


def with_parameter(name, value):
    cell = LSTMCell(5, 7)
    cell._parameters[name] = value if value is None else nn.Parameter(value)
    return cell


def of_size(hidden_size):
    cell = LSTMCell(5, 7)
    cell._parameters.update(LSTMCell(5, hidden_size)._parameters)
    return cell


CELL = LSTMCell(5, 7)
FAULTS = {
    "input of integers": (CELL, zeros(3, 5).int(), (H0, C0), "input: expected a floating-point dtype"),
    "input of wrong width": (CELL, zeros(3, 6), (H0, C0), "input: expected 5 features"),
    "input of three dimensions": (CELL, X[None], (H0, C0), "input: expected a tensor of 1 dimension"),
    "float64": (CELL, X.double(), (H0.double(), C0.double()), "input: expected torch.float32 like"),
    "three states": (CELL, X, (H0, C0, C0), r"hx: expected a pair \(h_0, c_0\), got tuple of 3"),
    "three states of one": (
        CELL,
        X[0],
        (H0[0], C0[0], C0[0]),
        r"hx: expected a pair \(h_0, c_0\), got tuple",
    ),
    "a tensor of states": (CELL, X, torch.stack([H0, C0]), r"hx: expected a pair \(h_0, c_0\), got Tensor"),
    "a number": (CELL, X, (H0, 1.0), r"hx\[1\]: expected a tensor"),
    "a batch of two": (CELL, X, (H0[:2], C0[:2]), r"hx\[0\]: expected shape \(3, 7\)"),
    "wide states": (CELL, X, (zeros(3, 8), zeros(3, 8)), r"hx\[0\]: expected shape \(3, 7\)"),
    "c in double": (CELL, X, (H0, C0.double()), r"hx\[1\]: expected torch.float32"),
    "h on meta": (CELL, X, (H0.to("meta"), C0), r"hx\[0\]: expected device cpu"),
    "no batch": (CELL, X[0], (H0, C0), r"hx\[0\]: expected shape \(7,\)"),
    "weight on meta": (with_parameter("weight_hh", zeros(28, 7, device="meta")), X, (H0, C0), "weight_hh"),
    "weight_ih is None": (with_parameter("weight_ih", None), X, (H0, C0), "weight_ih: expected a tensor"),
    "bias is None": (with_parameter("bias_hh", None), X, (H0, C0), "bias_hh: expected a tensor"),
    "bias that would be broadcast": (with_parameter("bias_hh", zeros(1)), X, (H0, C0), "bias_hh"),
    "peephole transposed": (with_parameter("weight_peephole", zeros(7, 3)), X, (H0, C0), "weight_peephole"),
    "sparse weight": (with_parameter("weight_hh", zeros(28, 7).to_sparse()), X, (H0, C0), "a dense tensor"),
    "another size": (of_size(9), X, (zeros(3, 9), zeros(3, 9)), r"hx\[0\]: expected shape \(3, 7\)"),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_errors_name_the_argument(name, grad):
    cell, x, hx, message = FAULTS[name]
    with torch.set_grad_enabled(grad), pytest.raises(ArgumentError, match=message) as caught:
        cell(x, hx)
    assert caught.value.__context__ is None  # the engine's own error would only confuse


def test_other_errors_stay_what_they_are(monkeypatch):
    def step(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(LSTMCell, "_step", step)
    with pytest.raises(MemoryError, match="no memory"):
        CELL(X, (H0, C0))


def checkpointed(x, h):
    checkpoint(CELL, x, (h, h), use_reentrant=False)[0].sum().backward()


def refused(x, h):
    with pytest.raises(ArgumentError):
        CELL(x, (h, x))


@pytest.mark.parametrize("call", [checkpointed, refused])
def test_no_tensor_waits_for_the_garbage_collector(call):
    call(torch.randn(3, 5, requires_grad=True), zeros(3, 7))  # checkpoints import much the first time
    x, h = torch.randn(3, 5, requires_grad=True), zeros(3, 7)
    gc.collect()
    gc.disable()
    try:
        call(x, h)
        alive = weakref.ref(x)
        del x
        assert alive() is None
    finally:
        gc.enable()


def test_an_early_stop_of_a_checkpoint_computes_no_parameter_twice():
    cell, computed = LSTMCell(5, 7), []

    class Count(nn.Module):
        def forward(self, weight):
            computed.append(weight)
            return 1 * weight

    parametrize.register_parametrization(cell, "weight_hh", Count())
    computed.clear()
    checkpoint(cell, torch.randn(3, 5, requires_grad=True), (H0, C0), use_reentrant=False)[0].sum().backward()
    assert len(computed) == 2  # forward, and for backward


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_given_zeros_are_as_none(batch):
    torch.manual_seed(0)
    x, zero = torch.randn(*batch, 5), zeros(*batch, 7)
    results = []
    for hx in (None, (zero, zero), [zero, zero]):
        CELL.zero_grad()
        h, c = CELL(x, hx)
        (h.sum() + c.sin().sum()).backward()
        results.append([h, c, *(p.grad for p in CELL.parameters())])
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def test_the_biases_gradients_share_no_memory():
    h, _ = CELL(X, (H0, C0))
    CELL.zero_grad()
    h.sum().backward()
    first, second = CELL.bias_ih.grad, CELL.bias_hh.grad
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
