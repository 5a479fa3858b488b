"""The C++ engine's products after the recurrence, dx, dW_ih and dW_hh, against the reference in float64."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from lstm_fused import reference
from lstm_fused.autograd.operators import products, products_op
from lstm_fused.backends import cpp
from lstm_fused.contract import Factors, Products

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

# T, B, M, I, P. Blocks have up to 1024 rows, tiles 6 or 14, panels 8 to 32 columns.
SIZES = (
    (1, 1, 4, 1, 1),
    (1, 8, 36, 9, 9),
    (3, 2, 28, 5, 3),
    (16, 3, 64, 5, 3),  # panels of da without room between them, of whole vectors and of less
    (24, 2, 28, 5, 3),
    (5, 37, 1, 33, 2),
    (19, 27, 148, 13, 37),
    (29, 53, 212, 65, 53),
    (19, 27, 20, 290, 270),
    (3, 5, 1024, 9, 9),
    (3, 2, 28, 0, 7),
    (0, 3, 12, 5, 3),
    (4, 0, 12, 5, 3),
)
WIDTH = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
each_dtype = pytest.mark.parametrize("dtype", WIDTH, ids=lambda dtype: str(dtype)[6:])


def make_factors(sizes, dtype, lengths=False, reverse=False, apart=False, seed=0):
    """Factors with NaN wherever a step is not valid."""
    T, B, M, I, P = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    dxw, dhw, x, y = draw(T, B, M), draw(T, B, M), draw(T, B, I), draw(T, B, P)
    steps = torch.randint(T + 1, (B,), generator=generator) if lengths else None
    if steps is not None:
        padding = torch.arange(T)[:, None] >= steps
        for tensor in (dxw, dhw, x, y):
            tensor[padding] = torch.nan
    return Factors(dxw, dhw if apart else None, x, draw(M, I), y, draw(B, P), steps, reverse)


def widened(factors):
    """The same in float64, with zeros for NaN: the reference multiplies them."""
    return Factors(
        *(f.double().nan_to_num(0) if isinstance(f, torch.Tensor) else f for f in factors[:6]), *factors[6:]
    )


def check(found, factors):
    """Errors are within the rounding of the result and of sums of as many terms, each rounded."""
    exact, wide = reference.products(widened(factors)), widened(factors)
    sizes = reference.products(Factors(*(f.abs() if f is not None else f for f in wide[:6]), *wide[6:]))
    sums = WIDTH[torch.float32] if factors.dxw.dtype == torch.bfloat16 else WIDTH[factors.dxw.dtype]
    for name, value, right, size in zip(Products._fields, found, exact, sizes, strict=True):
        assert value.shape == right.shape, name
        bound = WIDTH[value.dtype] * right.abs() + 16 * sums * size
        assert bool(((value.double() - right).abs() <= bound).all()), name


@each_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_equal_the_reference(sizes, dtype):
    for options in product((False, True), repeat=3):
        factors = make_factors(sizes, dtype, *options)
        check(products("cpp", factors), factors)


def test_blocks_take_a_double_buffer_and_rows_of_dxw_stay_where_they_are():
    """Both choices occur among SIZES, and so do both of their alternatives."""
    chosen = {
        (p["copies_dxw"], p["double_buffer"])
        for T, B, M, I, P in SIZES
        if M % 4 == 0
        for p in [cpp.plan(cpp.isa(), torch.float32, [T, B, I, M // 4, P], "products", 2, 2**20)]
    }
    assert {copies for copies, _ in chosen} == {double for _, double in chosen} == {False, True}


def test_strided_inputs():
    T, B, M, I, P = 9, 7, 20, 11, 5
    factors = make_factors((T, B, M, I, P), torch.float32)
    x, y = (torch.randn(B, T, n + 3).transpose(0, 1)[..., :n] for n in (I, P))
    weight = torch.randn(I, M).T
    strided = factors._replace(x=x, y=y, weight_ih=weight, h0=torch.randn(P, B).T)
    check(products("cpp", strided), strided)
    expanded = factors._replace(x=torch.randn(I).expand(T, B, I), h0=torch.randn(1, P).expand(B, P))
    check(products("cpp", expanded), expanded)


def test_each_product_alone_has_the_bits_of_all_three():
    factors = make_factors((29, 53, 212, 65, 53), torch.float32, lengths=True)
    together = products("cpp", factors)
    nothing = Factors(factors.dxw, None, None, None, None, None, factors.lengths, False)
    for n, names in enumerate((("weight_ih",), ("x",), ("y", "h0"))):
        alone = products("cpp", nothing._replace(**{name: getattr(factors, name) for name in names}))
        assert torch.equal(alone[n], together[n])
        assert [alone[k].numel() for k in range(3) if k != n] == [0, 0]


@each_dtype
def test_the_number_of_threads_changes_rounding_at_most(dtype):
    factors = make_factors((29, 53, 212, 65, 53), dtype, lengths=True, apart=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = products("cpp", factors)
            check(found, factors)
            assert all(map(torch.equal, found, products("cpp", factors)))
    finally:
        torch.set_num_threads(before)


def test_infinities_and_nan_of_valid_steps_stay():
    factors = make_factors((4, 3, 8, 5, 6), torch.float32)
    factors.dxw[1, 2, 3], factors.x[2, 1, 4] = torch.inf, torch.nan
    dx, dweight_ih, dweight_hh = products("cpp", factors)
    assert dx[1, 2].isinf().all() and dx.isfinite().sum() == dx.numel() - 5
    assert dweight_ih[:, 4].isnan().all() and dweight_ih[3, :4].isinf().all()
    assert dweight_hh[3].isinf().all() and dweight_hh.isfinite().sum() == 7 * 6


@pytest.mark.parametrize("isa", [isa for isa in cpp.isas() if isa != cpp.isa()])
def test_products_on_every_other_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_ISA", isa)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "reference or threads"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("lengths", [False, True])
def test_the_operator_follows_the_rules_of_pytorch(lengths):
    factors = make_factors((3, 2, 28, 5, 3), torch.float32, lengths, apart=True)
    factors = Factors(
        *(f.nan_to_num(0) if isinstance(f, torch.Tensor) and f.is_floating_point() else f for f in factors)
    )
    opcheck(products_op["cpp"], tuple(factors), test_utils=("test_schema", "test_faketensor"))


def test_the_operator_refuses_what_would_be_unsafe():
    factors = make_factors((3, 2, 28, 5, 3), torch.float32)
    for name, value, message in (
        ("x", torch.zeros(3, 1, 5), "x must have shape"),
        ("x", torch.zeros(3, 2), "must have 3, 2 and 3 dimensions"),
        ("weight_ih", torch.zeros(28, 4), "weight_ih must have shape"),
        ("y", torch.zeros(2, 2, 3), "y must have shape"),
        ("h0", torch.zeros(2, 4), "h0 must have shape"),
        ("h0", None, "y and h0 go together"),
        ("dhw", torch.zeros(3, 2, 27), "dhw must have shape"),
        ("y", torch.zeros(3, 2, 3, dtype=torch.float64), "y must be Float"),
        ("lengths", torch.tensor([3, 4]), "must be in"),
    ):
        with pytest.raises(RuntimeError, match=message):
            products("cpp", factors._replace(**{name: value}))
    with pytest.raises(RuntimeError, match="dxw must be bfloat16, float32 or float64"):
        products("cpp", Factors(torch.zeros(1, 1, 4).half(), *[None] * 6, False))


def test_the_operator_has_no_derivative():
    factors = make_factors((3, 2, 28, 5, 3), torch.float32)
    found = products_op["cpp"](*factors._replace(x=factors.x.requires_grad_()))
    with pytest.raises(RuntimeError, match="cpp_products has no derivative"):
        found[1].sum().backward()
