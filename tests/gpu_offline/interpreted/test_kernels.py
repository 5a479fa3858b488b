"""Every kernel in the interpreter, against the reference."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import Case, make_tensors
from concurrently import concurrently
from harness import call, check_against_reference, results
from torch.autograd import gradcheck

from lstm_fused.backends import short

KERNELS = ("step", "resident", "cooperative")
# Odd sizes, more than one tile of rows and of columns; large enough that largest errors can be compared.
SMALL = Case("small", T=3, B=17, I=5, H=19)
LENGTHS = (0, 1, 2, 3, 3, 1, 2, 0, 3, 2, 1, 3, 3, 2, 0, 3, 1)

CASES = (
    Case("one_of_everything", T=1, B=1, I=1, H=1),
    Case("no_steps", T=0, B=3, I=5, H=7),
    Case("empty_batch", T=4, B=0, I=5, H=7),
    Case("all_lengths_zero", T=2, B=2, I=5, H=7, lengths=(0, 0)),
    SMALL,
    replace(SMALL, name="bare", bias=False, peephole=False, states=False),
    replace(SMALL, name="reverse", reverse=True),
    replace(SMALL, name="lengths", lengths=LENGTHS),
    replace(SMALL, name="lengths_reverse", lengths=LENGTHS, reverse=True),
    replace(SMALL, name="strided_lengths", layout="strided", lengths=LENGTHS),
    replace(SMALL, name="expanded", layout="expanded"),
)
PROJECTIONS = (
    replace(SMALL, name="projection", P=7),
    replace(SMALL, name="projection_lengths_reverse", P=7, lengths=LENGTHS, reverse=True),
)
# The interpreter takes a tenth of a second for a program's step, and here two programs wait for each other.
TWO_TILES = [
    replace(case, B=5, H=11, lengths=case.lengths and case.lengths[:5]) for case in (*CASES[4:6], *CASES[7:9])
]
EVERY_CASE = (
    [("resident", case) for case in CASES]
    + [("step", case) for case in (*CASES[4:6], *CASES[7:9], *PROJECTIONS)]
    + [("cooperative", case) for case in TWO_TILES]
)
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture
def kernel(request, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_KERNEL", request.param)
    # Alone, the first program of a cooperative kernel would wait for the others forever.
    with concurrently(0) if request.param == "cooperative" else nullcontext():
        yield


@pytest.mark.parametrize(
    ("kernel", "case"), EVERY_CASE, ids=lambda v: getattr(v, "name", v), indirect=["kernel"]
)
def test_outputs_and_gradients(kernel, case):
    check_against_reference("triton", case, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("kernel", "case"),
    [("resident", CASES[8]), ("cooperative", TWO_TILES[3]), ("step", PROJECTIONS[1])],
    ids=lambda v: getattr(v, "name", v),
    indirect=["kernel"],
)
def test_every_dtype(kernel, case, dtype):
    check_against_reference("triton", case, dtype)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
@pytest.mark.parametrize("outputs", [("y",), ("h_n",), ("c_n",)], ids="+".join)
def test_any_output_may_carry_the_gradient(kernel, outputs):
    case = Case("small", T=2, B=3, I=3, H=5, lengths=(2, 1, 0))
    exact = results("reference", case, torch.float64, outputs=outputs)
    for name, value in results("triton", case, torch.float64, outputs=outputs).items():
        torch.testing.assert_close(
            value, exact[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_gradcheck(kernel):
    case = Case("tiny", T=2, B=2, I=2, H=3)
    tensors = make_tensors(case, torch.float64)
    names = [n for n, t in tensors.items() if t is not None]
    leaves = [tensors[n].requires_grad_() for n in names]

    def function(*leaves):
        return call("triton", case, tensors | dict(zip(names, leaves, strict=True)))

    assert gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_same_bits_every_time_and_nothing_left_unwritten(kernel):
    case = Case("small", T=2, B=3, I=3, H=5, lengths=(2, 1, 0), reverse=True)
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    try:
        first, second = (results("triton", case, torch.float32) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, second[name]), name
