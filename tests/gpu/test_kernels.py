"""Every kernel against the reference: on a GPU in every case and dtype, in the interpreter in some."""

from dataclasses import replace

import cases
import pytest
import torch
from cases import GAINS, NAMES, Case, make_lengths, make_tensors
from harness import call, check_against_reference, results
from kernels_here import DTYPES, ON_GPU, PRECISIONS, TF32, running, takes
from lstm_fused.kernels.plan import EXCHANGES, GLUON
from torch.autograd import gradcheck

from lstm_fused.autograd.operators import forward_op
from lstm_fused.backends.table import short

# Those in Gluon run in neither the interpreter nor every dtype.
KERNELS = tuple(name for name in EXCHANGES if name not in GLUON)
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
EVERY = replace(cases.EVERY_VARIANT, T=3, B=17, I=5, H=19)
VARIANTS = (
    EVERY,
    replace(EVERY, name="every_variant_projection_lengths_reverse", P=7, lengths=LENGTHS, reverse=True),
    replace(EVERY, name="every_variant_but_layer_norm", layer_norm=False, lengths=LENGTHS, H=11),
    replace(
        EVERY, name="every_variant_but_layer_norm_expanded", layer_norm=False, layout="expanded", H=11, P=7
    ),
)
# The interpreter takes a tenth of a second for a program's step, and here two programs wait for each other.
TWO_TILES = [
    replace(case, B=5, H=11, lengths=case.lengths and case.lengths[:5]) for case in (*CASES[4:6], *CASES[7:9])
]
FLOAT32 = (torch.float32, "highest")
# The interpreter is slow: there all of them in float32, and one of each kernel in every dtype.
CHOSEN = {  # by exchange
    "": CASES,
    "launches": (*CASES[4:6], *CASES[7:9], *PROJECTIONS, *VARIANTS),
    "counters": TWO_TILES,
}
IN_EVERY_DTYPE = {"": CASES[8], "launches": PROJECTIONS[1], "counters": TWO_TILES[3]}
RUNS = [(kernel, case, FLOAT32) for kernel in KERNELS for case in CHOSEN[EXCHANGES[kernel]]] + [
    (kernel, IN_EVERY_DTYPE[EXCHANGES[kernel]], precision)
    for kernel in KERNELS
    for precision in PRECISIONS
    if precision != FLOAT32
]
if ON_GPU:
    RUNS = [
        (kernel, case, precision)
        for case in (*cases.CASES, *cases.VARIANTS)
        for precision in PRECISIONS
        for kernel in KERNELS
        if takes(kernel, case, precision[0])
    ]


@pytest.fixture
def kernel(request, monkeypatch):
    with running(request.param, monkeypatch):
        yield


@pytest.fixture
def precision(request):
    dtype, products = request.param
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    yield dtype, TF32 if products == "high" else None
    torch.set_float32_matmul_precision(before)


def run_id(value):
    return f"{short(value[0])}-{value[1]}" if isinstance(value, tuple) else getattr(value, "name", value)


@pytest.mark.parametrize(("kernel", "case", "precision"), RUNS, ids=run_id, indirect=["kernel", "precision"])
def test_outputs_and_gradients(kernel, case, precision):
    # Rounding decides whether what lies at the bound was clipped, and with it the gradient.
    exact = case.cell_clip is None or precision[0] == torch.float64 or not ON_GPU
    check_against_reference("triton", case, *precision, wanted=(*NAMES, *GAINS) if exact else ())


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    "case",
    [
        Case("small", T=2, B=5, I=3, H=11),
        Case("small_lengths_reverse", T=2, B=5, I=3, H=11, lengths=(2, 1, 0, 2, 1), reverse=True),
    ],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_saved_c_and_gates(kernel, case, dtype):
    t = make_tensors(case, dtype)
    arguments = (*(t[n] for n in NAMES), make_lengths(case), case.reverse)
    ours, exact = (forward_op[engine](*arguments, True) for engine in ("triton", "reference"))
    tolerance = 4 * torch.finfo(dtype).eps
    for name, a, b in zip(("y", "h_n", "c_n", "c", "gates"), ours, exact, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for kept in forward_op["triton"](*arguments, False)[3:]:
        assert kept.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_h_is_rounded_at_every_step_as_in_the_reference(kernel, dtype):
    # Then c, in float32, is the reference's but for float32's own rounding; it tells h that were not rounded.
    tensors = make_tensors(Case("small", T=3, B=5, I=3, H=11), dtype)
    t = [tensors[n] for n in NAMES]
    wide = [None if v is None else v.float() for v in t]
    (_, _, _, ours, _), (_, _, _, rounded, _), (_, _, _, unrounded, _) = (
        forward_op[engine](*inputs, None, False, True)
        for engine, inputs in (("triton", t), ("reference", t), ("reference", wide))
    )
    assert (ours - rounded)[1:].abs().median() < 0.1 * (ours - unrounded)[1:].abs().median()


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


@pytest.mark.parametrize("kernel", ["step"], indirect=True)
def test_variants_write_everything(kernel, deterministic):
    case = replace(EVERY, B=3, H=5, P=2, lengths=(2, 1, 0), reverse=True)
    for name, value in results("triton", case, torch.float32).items():
        assert value.isfinite().all(), name


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
