"""The reference, compared with autograd, the oracle and torch.nn.LSTM."""

import numpy as np
import pytest
import torch
from cases import CASES, NAMES, Case, layer_saved, make_tensors
from harness import oracle_results, reference_results
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lstm_fused import reference
from lstm_fused.contract import Inputs, OutputGradients

SMALL = (
    Case("plain", T=3, B=2, I=2, H=3),
    Case("bare", T=3, B=2, I=2, H=3, bias=False, peephole=False),
    Case("reverse", T=3, B=2, I=2, H=3, reverse=True),
    Case("lengths", T=3, B=3, I=2, H=3, lengths=(2, 0, 3)),
    Case("lengths_reverse", T=3, B=3, I=2, H=3, lengths=(2, 0, 3), reverse=True),
    Case("projection", T=3, B=3, I=2, H=3, P=2, lengths=(3, 1, 2), reverse=True),
)


def small_inputs(case: Case) -> list[Tensor | None]:
    """Return float64 leaves in the order of `contract.Inputs`."""
    tensors = make_tensors(case, torch.float64)
    return [None if tensors[n] is None else tensors[n].requires_grad_() for n in NAMES]


def forward(case: Case, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Return y, h_n, c_n from plain PyTorch operations that autograd records."""
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    return reference.forward(Inputs(*inputs, lengths, case.reverse, False))[:3]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_autograd_of_the_reference(case):
    inputs = small_inputs(case)
    assert gradcheck(lambda *t: forward(case, *t), inputs)
    assert gradgradcheck(lambda *t: forward(case, *t), inputs)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_hand_derived_backward_equals_autograd(case):
    inputs = small_inputs(case)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    inputs = Inputs(*inputs, lengths, case.reverse, True)
    out = reference.forward(inputs)
    douts = OutputGradients(*(torch.randn_like(o) for o in out[:3]))
    back = reference.backward(layer_saved(inputs, out), douts)
    dx, dh0, dc0 = torch.autograd.grad(out[:3], (inputs.x, inputs.h0, inputs.c0), douts)
    for name, ours, theirs in (
        ("dx", back.dxw @ inputs.weight_ih, dx),
        ("dh0", back.dh0, dh0),
        ("dc0", back.dc0, dc0),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", [*SMALL, *(c for c in CASES if c.T < 21)], ids=lambda c: c.name)
def test_outputs_and_gradients_equal_the_oracle(case):
    ours, exact = reference_results(case, torch.float64, 0), oracle_results(case, 0)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("P", [0, 3])
def test_zero_peepholes_equal_torch(P):
    theirs = torch.nn.LSTM(5, 7, proj_size=P, dtype=torch.float64)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    h0, c0 = torch.randn(2, P or 7, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    zeros = torch.zeros(3, 7, dtype=torch.float64)
    weights = theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0, theirs.bias_hh_l0, zeros
    weights += (theirs.weight_hr_l0 if P else None,)
    ours = reference.forward(Inputs(x, *weights, h0, c0, None, False, False))
    y, (h_n, c_n) = theirs(x, (h0[None], c0[None]))
    for ours_, theirs_ in ((ours.y, y), (ours.h_n, h_n[0]), (ours.c_n, c_n[0])):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_cell_state_in_float32(dtype):
    # 1,000 steps that each add 2**-13: a state in half precision would stop growing at 2**-2.
    T, H = 1000, 1
    w = torch.zeros(4, 1, dtype=dtype)
    bias = torch.tensor([100.0, 100.0, 2**-13, 100.0], dtype=dtype)
    x, state = torch.zeros(T, 1, 1, dtype=dtype), torch.zeros(1, H, dtype=dtype)
    out = reference.forward(Inputs(x, w, w, bias, None, None, None, state, state, None, False, True))
    assert out.c.dtype == torch.float32
    assert abs(out.c[-1].item() - T * 2**-13) < 1e-4
    assert out.y.dtype == out.h_n.dtype == out.c_n.dtype == out.gates.dtype == dtype


def test_runs_on_the_meta_device():
    # The meta device has no data: the reference reads no values on the host, so it runs on any device.
    case = Case("meta", T=4, B=2, I=3, H=5, lengths=(4, 1))
    inputs = [None if t is None else t.detach().to("meta") for t in small_inputs(case)]
    out = reference.forward(Inputs(*inputs, torch.tensor(case.lengths).to("meta"), False, True))
    assert out.y.shape == (4, 2, 5)
