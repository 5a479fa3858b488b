"""Higher derivatives by any mix of modes, compared with plain reverse mode."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import EVERY_VARIANT, PLAIN, Case, make_tensors
from harness import ENGINES_HERE, call
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import lstm_fused
from lstm_fused import LSTM, LSTMCell

F64 = torch.float64
ALL = [engine.name for engine in ENGINES_HERE]
each_engine = pytest.mark.parametrize("engine", ALL)
CASES = [
    Case("plain", T=3, B=2, I=2, H=3),
    Case("busy", T=3, B=3, I=2, H=3, P=2, lengths=(2, 0, 3), reverse=True),
    replace(EVERY_VARIANT, T=3, B=4, I=2, H=3, P=2, lengths=(2, 0, 3, 3), reverse=True),
]
ORDERS = ("FF", "FR", "RF", "FFF", "FFR", "FRF", "RFF", "FRR", "RRF", "RFR")


def directional(function, order, v):
    """Differentiate along v once per letter of the order: F by forward mode, R by reverse mode."""
    for mode in reversed(order):
        if mode == "F":
            function = partial(lambda f, x: jvp(f, (x,), (v,))[1], function)
        else:
            function = partial(lambda f, x: (grad(f)(x) * v).sum(), function)
    return function


def check(function, x, orders=ORDERS):
    """Check that every order equals plain reverse mode, and that none is zero."""
    torch.manual_seed(1)
    v = torch.randn_like(x)
    expected = {}
    leaf = x.detach().requires_grad_()
    value = function(leaf)
    for n in range(1, 4):
        value = (torch.autograd.grad(value, leaf, create_graph=True)[0] * v).sum()
        expected[n] = value.detach()
        assert expected[n].abs() > 1e-8
    for order in orders:
        found = directional(function, order, v)(x)
        torch.testing.assert_close(
            found, expected[len(order)], rtol=1e-9, atol=1e-12, msg=f"{order}: {found}"
        )


@each_engine
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["x", "weight_hh", "peephole", "c0"])
def test_modes_nest_in_any_order(engine, case, name):
    tensors = make_tensors(case, F64)

    def loss(value):
        return sum(out.sin().sum() for out in call(engine, case, tensors | {name: value}))

    check(loss, tensors[name])


@each_engine
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: LSTM(2, 3, 2, bidirectional=True, proj_size=2, **o),
        lambda **o: LSTM(2, 3, coupled=True, zoneout_c=0.3, cell_clip=0.5, **o).eval(),
        lambda **o: LSTMCell(2, 3, layer_norm=True, zoneout_h=0.2, **o).eval(),
    ],
    ids=["deep", "variants", "cell"],
)
def test_modes_nest_through_modules(engine, make):
    torch.manual_seed(0)
    module = make(dtype=F64, engine=engine)
    x = torch.randn(2, 2, dtype=F64) if isinstance(module, LSTMCell) else torch.randn(3, 2, 2, dtype=F64)

    def loss(x):
        found = module(x)
        return found[0].sin().sum() + found[1][-1].square().sum()

    check(loss, x, ("FF", "FRF", "RFF"))


@each_engine
def test_forward_mode_nests_through_an_earlier_backward_pass(engine):
    torch.manual_seed(0)
    x, lstm = torch.randn(3, 2, 2, dtype=F64, requires_grad=True), LSTM(2, 3, dtype=F64, engine=engine)
    y, _ = lstm(x)
    one = torch.ones((), dtype=F64)

    def pulled(s):
        return torch.autograd.grad(y, x, s.tan().expand_as(y), retain_graph=True)[0].sum()

    s = torch.tensor(0.3, dtype=F64)
    found = jvp(lambda s: jvp(pulled, (s,), (one,))[1], (s,), (one,))[1]
    slope = pulled(s) / s.tan()  # the pullback is linear, tan is not
    torch.testing.assert_close(found, slope * 2 * s.tan() * (1 + s.tan() ** 2))


@each_engine
def test_jacobians_of_jacobians(engine):
    torch.manual_seed(0)
    lstm, x = LSTM(2, 3, dtype=F64, engine=engine), torch.randn(3, 2, dtype=F64)

    def loss(x):
        return lstm(x)[0].sin().sum()

    expected = torch.autograd.functional.hessian(loss, x)
    assert expected.abs().max() > 1e-3
    for found in (jacfwd(jacfwd(loss)), jacrev(jacfwd(loss)), jacfwd(jacrev(loss)), hessian(loss)):
        torch.testing.assert_close(found(x), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vmap(found)(torch.stack([x, x]))[1], expected, rtol=1e-9, atol=1e-12)


@each_engine
def test_forward_mode_over_vmap_over_forward_mode(engine):
    torch.manual_seed(0)
    lstm, xs = LSTM(2, 3, dtype=F64, engine=engine), torch.randn(2, 3, 2, dtype=F64)

    def slope(x):
        return jvp(lambda x: lstm(x)[0].sin().sum(), (x,), (torch.ones_like(x),))[1]

    ones = torch.ones_like(xs)
    found = jvp(vmap(slope), (xs,), (ones,))[1]
    hessians = [torch.autograd.functional.hessian(lambda x: lstm(x)[0].sin().sum(), x) for x in xs]
    torch.testing.assert_close(found, torch.stack([h.sum() for h in hessians]), rtol=1e-9, atol=1e-12)


@each_engine
def test_the_function_nests(engine):
    t = make_tensors(replace(PLAIN, T=3, B=2, I=2, H=3), F64)

    def loss(weight_ih):
        return lstm_fused.lstm(t["x"], weight_ih, t["weight_hh"], engine=engine)[0].sin().sum()

    check(loss, t["weight_ih"], ("FF", "FFF"))


@each_engine
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2, "layer_norm": True}])
def test_pullbacks_outlive_their_level(engine, options):
    torch.manual_seed(0)
    lstm, x = LSTM(2, 3, dtype=F64, engine=engine, **options), torch.randn(3, 2, 2, dtype=F64)
    v, leaf = torch.randn_like(x), x.clone().requires_grad_()

    def loss(x):
        return lstm(x)[0].sin().sum()

    slope = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    curvature = torch.autograd.grad(slope, leaf, v, create_graph=True)[0]
    one = torch.ones((), dtype=F64)
    for first in (grad(loss), lambda x: vjp(loss, x)[1](one)[0]):
        pullback = vjp(first, x)[1]
        for _ in range(2):
            torch.testing.assert_close(pullback(v)[0], curvature, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vmap(pullback)(v[None])[0][0], curvature, rtol=1e-9, atol=1e-12)
    bent = vjp(grad(lambda x: (grad(loss)(x) * v).sum()), x)[1](v)[0]
    third = torch.autograd.grad(curvature, leaf, v)[0]
    torch.testing.assert_close(bent, third, rtol=1e-9, atol=1e-12)
