"""Every engine that runs here, compared with the reference in float64."""

from dataclasses import replace

import pytest
import torch
from cases import (
    CASES,
    DEVICE,
    EVERY_VARIANT,
    FINE,
    FINE_CASES,
    GAINS,
    NAMES,
    NORM,
    PLAIN,
    UNEVEN,
    VARIANTS,
    ZONEOUT,
    Case,
    make_lengths,
    make_masks,
    make_tensors,
)
from harness import ENGINES_HERE, NATIVE, call, check_against_reference, results
from oracle import EXTENDED
from torch.autograd import gradcheck, gradgradcheck

from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends.table import short

ALL = [engine.name for engine in ENGINES_HERE]
NATIVE_DTYPES = [(e.name, dtype) for e in ENGINES_HERE if e.name in NATIVE for dtype in e.dtypes]
HALF = [("reference", torch.float16), ("reference", torch.bfloat16)]
SHORT = replace(PLAIN, T=16)  # float16 products take seconds on a CPU
BUSY = Case("busy", T=3, B=3, I=2, H=3, P=2, lengths=(2, 0, 3), reverse=True)


SMALL_VARIANTS = [
    replace(case, name=f"{case.name}_{kind}", T=3, B=3, I=2, H=3, **more)
    for case in (
        replace(PLAIN, name="recurrent_dropout", recurrent_dropout=True),
        ZONEOUT,
        replace(PLAIN, name="cell_clip", cell_clip=0.5),
        NORM,
        EVERY_VARIANT,
    )
    for kind, more in (("plain", {}), ("busy", {"P": 2, "lengths": (2, 0, 3), "reverse": True}))
]


def engine_and_dtype(value):
    return value if isinstance(value, str) else short(value)


@pytest.mark.parametrize(("engine", "dtype"), NATIVE_DTYPES, ids=engine_and_dtype)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_outputs_and_gradients(case, engine, dtype):
    if dtype == torch.float64 and not EXTENDED:
        pytest.skip("numpy has no precision beyond float64 here")
    check_against_reference(engine, case, dtype)


@pytest.mark.parametrize(
    ("engine", "dtype"), [("reference", torch.float64), *NATIVE_DTYPES], ids=engine_and_dtype
)
@pytest.mark.parametrize("case", VARIANTS, ids=lambda c: c.name)
def test_variants(case, engine, dtype):
    if dtype == torch.float64 and not EXTENDED:
        pytest.skip("numpy has no precision beyond float64 here")
    # In bfloat16 rounding decides whether c is clipped, and with it the gradient.
    outputs_alone = case.cell_clip is not None and dtype == torch.bfloat16
    check_against_reference(engine, case, dtype, wanted=() if outputs_alone else (*NAMES, *GAINS))


@pytest.mark.parametrize("engine", NATIVE)
@pytest.mark.parametrize("wanted", [(*NAMES, *GAINS), ()], ids=["gradients", "outputs"])
@pytest.mark.parametrize("case", FINE_CASES, ids=lambda c: c.name)
def test_values_with_24_significant_bits(case, wanted, engine):
    check_against_reference(engine, case, torch.float32, wanted=wanted)


@pytest.mark.parametrize(("engine", "dtype"), HALF, ids=engine_and_dtype)
@pytest.mark.parametrize("case", [SHORT, replace(SHORT, P=11, lengths=(9, 16, 0))], ids=["plain", "busy"])
def test_half_precision_of_the_reference(case, engine, dtype):
    check_against_reference(engine, case, dtype)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    "wanted", [(n,) for n in NAMES] + [("x", "peephole"), ("weight_hh", "c0"), ()], ids="+".join
)
def test_any_combination_may_require_gradients(engine, wanted):
    case = replace(PLAIN, T=5, P=4, lengths=(5, 2, 0))
    exact = results("reference", case, torch.float64)
    some = results(engine, case, torch.float64, wanted=wanted)
    assert {n for n in some if n.startswith("d_")} == {f"d_{n}" for n in wanted}
    for name, value in some.items():
        torch.testing.assert_close(
            value, exact[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("outputs", [("y",), ("h_n",), ("c_n",), ("h_n", "c_n")], ids="+".join)
@pytest.mark.parametrize("reverse", [False, True])
def test_any_output_may_carry_the_gradient(engine, outputs, reverse):
    case = replace(PLAIN, T=5, P=4, lengths=(5, 2, 0), reverse=reverse)
    exact = results("reference", case, torch.float64, outputs=outputs)
    for name, value in results(engine, case, torch.float64, outputs=outputs).items():
        torch.testing.assert_close(
            value, exact[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    "case",
    [
        Case("plain", T=3, B=2, I=2, H=3),
        Case("bare", T=2, B=2, I=2, H=3, bias=False, peephole=False, states=False),
        Case("lengths", T=3, B=3, I=2, H=3, lengths=(2, 0, 3)),
        BUSY,
        *SMALL_VARIANTS,
    ],
    ids=lambda c: c.name,
)
def test_gradcheck_and_double_backward(engine, case):
    tensors = make_tensors(case, torch.float64)
    names = [n for n, t in tensors.items() if t is not None]
    leaves = [tensors[n].requires_grad_() for n in names]

    def function(*leaves):
        return call(engine, case, tensors | dict(zip(names, leaves, strict=True)))

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    "case",
    [replace(PLAIN, T=4), BUSY, Case("empty", T=0, B=0, I=2, H=3), *SMALL_VARIANTS[-2:]],
    ids=lambda c: c.name,
)
def test_opcheck(engine, case):
    t = make_tensors(case, torch.float32)
    lengths = make_lengths(case)
    options = (t["peephole"], t["weight_hr"])
    variant = (t.get("gain_hh"), *make_masks(case, torch.float32).values(), case.cell_clip)
    for save in (False, True):
        inputs = (
            t["x"], t["weight_ih"], t["weight_hh"], t["bias_ih"], t["bias_hh"], *options, t["h0"], t["c0"],
            lengths, case.reverse, save, *variant,
        )  # fmt: skip
        torch.library.opcheck(forward_op[engine], inputs)
    y, h_n, c_n, c, gates = forward_op[engine](*inputs)
    hw = gates.cumsum(-1) if case.layer_norm else None
    for douts in ((y, h_n, c_n), (None, None, c_n)):
        torch.library.opcheck(
            backward_op[engine],
            (*douts, c, gates, t["c0"], t["weight_hh"], *options, lengths, case.reverse, *variant, hw),
        )


@pytest.mark.parametrize("engine", NATIVE)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_saved_gates_equal_the_reference(engine, case):
    t = make_tensors(case, torch.float64)
    B, H, P = case.B, case.H, case.P or case.H
    zeros = tuple(torch.zeros(B, n, dtype=torch.float64, device=DEVICE) for n in (P, H))
    states = (t["h0"], t["c0"]) if case.states else zeros
    lengths = make_lengths(case)
    inputs = (*(t[name] for name in NAMES[:-2]), *states)
    ours = forward_op[engine](*inputs, lengths, case.reverse, True)
    exact = forward_op["reference"](*inputs, lengths, case.reverse, True)
    for name, a, b in zip(("y", "h_n", "c_n", "c", "gates"), ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    for name, a in zip(
        ("c", "gates"), forward_op[engine](*inputs, lengths, case.reverse, False)[3:], strict=True
    ):
        assert a.numel() == 0, f"{name} is saved without save=True"


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    "case", [PLAIN, replace(PLAIN, P=4, lengths=UNEVEN, reverse=True)], ids=["plain", "busy"]
)
def test_nothing_is_changed_in_place(engine, case):
    tensors = make_tensors(case, torch.float32)
    before = {n: t.clone() for n, t in tensors.items() if t is not None}
    leaves = [t.requires_grad_() for t in tensors.values() if t is not None]
    out = call(engine, case, tensors)
    douts = [torch.randn_like(o) for o in out]
    kept = [d.clone() for d in (*out, *douts)]
    first = torch.autograd.grad(out, leaves, douts, retain_graph=True)
    again = torch.autograd.grad(out, leaves, douts)
    for name, value in before.items():
        assert torch.equal(tensors[name], value), f"{name} was changed"
    assert all(map(torch.equal, (*out, *douts), kept))
    assert all(map(torch.equal, first, again)), "a second backward pass differs from the first"


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [(6, 2, 0), (6, 5, 6)], ids=["uneven", "nearly_whole"])
def test_padding_may_hold_nan(engine, lengths, reverse):
    case = replace(PLAIN, T=6, P=4, lengths=lengths, reverse=reverse)
    clean = make_tensors(case, torch.float64)
    dirty = dict(clean)
    dirty["x"] = clean["x"].clone()
    for row, length in enumerate(case.lengths):
        dirty["x"][length:, row] = torch.nan
    found = []
    for tensors in (clean, dirty):
        leaves = [t.detach().requires_grad_() for t in tensors.values() if t is not None]
        out = call(engine, case, dict(zip(tensors, leaves, strict=True)))
        found.append((*out, *torch.autograd.grad([o.sum() for o in out], leaves)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("engine", ALL)
def test_nan_and_inf_propagate_as_in_the_reference(engine):
    case = replace(PLAIN, T=6)
    for poison in (torch.nan, torch.inf, -torch.inf):
        found = []
        for name in (engine, "reference"):
            tensors = make_tensors(case, torch.float64)
            tensors["x"][2, 1, 3] = poison
            found.append(call(name, case, tensors))
        for ours, exact in zip(*found, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("engine", NATIVE)
@pytest.mark.parametrize("poisoned", ["x", "weight_ih", "weight_hh", "h0", "y"])
def test_nan_and_inf_propagate_in_float32(engine, poisoned):
    for poison in (torch.nan, torch.inf, -torch.inf):
        found = []
        for name in (engine, "reference"):
            tensors = make_tensors(FINE, torch.float32)
            if poisoned != "y":
                tensors[poisoned].view(-1)[29] = poison
            leaves = [t.requires_grad_() for t in tensors.values() if t is not None]
            y, h_n, c_n = call(name, FINE, tensors)
            weights = torch.ones_like(y)
            if poisoned == "y":
                weights[1, 7, 5] = poison  # one step before it distinguishes inf from NaN, two do not
            grads = torch.autograd.grad([y, c_n], leaves, [weights, torch.ones_like(c_n)])
            found.append([v.nan_to_num(3, posinf=2, neginf=1) * ~v.isfinite() for v in (y, h_n, c_n, *grads)])
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("engine", NATIVE)
def test_zero_output_gradients_give_zero_gradients(engine):
    tensors = make_tensors(FINE, torch.float32)
    tensors["weight_hh"] *= 100
    leaves = [t.requires_grad_() for t in tensors.values() if t is not None]
    y = call(engine, FINE, tensors)[0]
    assert not any(d.any() for d in torch.autograd.grad(y, leaves, torch.zeros_like(y)))


@pytest.mark.parametrize("engine", ALL)
def test_runs_are_bitwise_equal(engine):
    first, second = (results(engine, PLAIN, torch.float32) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(("engine", "dtype"), NATIVE_DTYPES, ids=engine_and_dtype)
@pytest.mark.parametrize("case", [*CASES, *VARIANTS, *FINE_CASES], ids=lambda c: c.name)
def test_every_output_element_is_written(case, engine, dtype, deterministic):
    # Deterministic mode fills torch.empty with NaN.
    for wanted in ((*NAMES, *GAINS), ()):
        for name, value in results(engine, case, dtype, wanted=wanted).items():
            assert not value.isnan().any(), f"{case.name}: {name} has unwritten elements"
