"""`lstm_fused.testing` and `python -m lstm_fused --check` find wrong engines, and accept right ones."""

import sys

import pytest
import torch

from lstm_fused import ArgumentError, __main__, lstm
from lstm_fused.backends import cpp, table, triton
from lstm_fused.testing import (
    CASES,
    Case,
    assert_engine_has_derivatives,
    assert_engine_matches_reference,
    command,
    comparison,
    derivatives,
)

F64 = torch.float64
HERE = [
    e.name
    for e in table.ENGINES
    if not e.why_not(torch.device("cpu"), torch.float32) and not triton.INTERPRETED
]
FEW = tuple(case for case in CASES if case.name in ("plain", "lengths in reverse", "variants", "one step"))


@pytest.mark.parametrize("engine", HERE)
def test_right_engines_pass(engine):
    assert_engine_matches_reference(engine, cases=FEW)
    assert_engine_matches_reference(lambda **given: lstm(**given, engine=engine), dtypes=[F64], cases=FEW)


def without_peephole(peephole=None, **given):
    return lstm(**given)


def without_lengths(lengths=None, **given):
    return lstm(**given)


def forwards(reverse=False, **given):
    return lstm(**given)


def with_half_a_gradient(weight_hh, **given):
    return lstm(weight_hh=0.5 * weight_hh + 0.5 * weight_hh.detach(), **given)


def in_half_precision(input, **given):
    return lstm(input.bfloat16().to(input) + 1e-4, **given)


def in_another_dtype(**given):
    y, states = lstm(**given)
    return y.double() if y.dtype == torch.float32 else y.float(), states


def with_nan(**given):
    y, (h_n, c_n) = lstm(**given)
    return y, (h_n * torch.nan, c_n)


def broken(**given):
    raise OSError("out of\n paper")


WRONG = {
    without_peephole: "plain, float32: y is off by .* where .* is allowed, .*peephole is missing",
    without_lengths: "lengths in reverse, float64: y is off by",
    forwards: "lengths in reverse, float32: y is off by",
    with_half_a_gradient: "plain, float32: the gradient of weight_hh is off by",
    in_half_precision: "plain, float32: y is off by",
    in_another_dtype: r"plain, float32: y is float64 of shape \(9, 3, 19\)",
    with_nan: "plain, float32: h_n is off by inf",
    broken: "plain, float32: OSError: out of paper",
}


@pytest.mark.parametrize("engine", WRONG)
def test_wrong_engines_are_found(engine):
    with pytest.raises(AssertionError, match=WRONG[engine]):
        assert_engine_matches_reference(engine, cases=FEW)


class WrongTwice(torch.autograd.Function):
    """The square, whose second derivative is wrong and which has no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, d):
        return d * 2 * ctx.saved_tensors[0].detach()


def wrong_twice(input, **given):
    y, states = lstm(input, **given)
    return WrongTwice.apply(y), states


def wrong_once(input, **given):
    y, states = lstm(input, **given)
    return 2 * y - y.detach(), states


def test_a_check_of_nothing_is_refused():
    def doubled(**arguments):
        y, states = lstm(**arguments)
        return (y * 2 if y.dtype == torch.float64 else y), states

    plain = (case for case in CASES if case.name == "plain")
    with pytest.raises(AssertionError, match="plain, float64: y is off"):
        assert_engine_matches_reference(doubled, cases=plain)
    for nothing in ({"cases": []}, {"dtypes": []}):
        with pytest.raises(ArgumentError, match="expected some that the engine computes, got none"):
            assert_engine_matches_reference(doubled, **nothing)
    with pytest.raises(RuntimeError, match="cannot serve"):
        assert_engine_matches_reference("cpp", dtypes=[torch.float16])
    for engine in (doubled, "reference"):
        with pytest.raises(ArgumentError, match=r"dtypes: expected floating-point dtypes, got torch\.int64"):
            assert_engine_matches_reference(engine, dtypes=[torch.float32, torch.int64])


def test_what_goes_wrong_after_many_steps_is_found():
    def late(**arguments):
        y, states = lstm(**arguments)
        return torch.cat((y[:128], 1.01 * y[128:])), states

    with pytest.raises(AssertionError) as found:
        assert_engine_matches_reference(late, dtypes=[torch.float32])
    assert all(line.startswith("many steps") for line in str(found.value).splitlines())


def test_wrong_derivatives_are_found(monkeypatch):
    monkeypatch.setattr(derivatives, "SMALL", (Case("tiny", T=2, B=1, I=1, H=2),))
    assert_engine_has_derivatives("reference")
    with pytest.raises(AssertionError, match=r"gradcheck of tiny: .*Jacobian mismatch"):
        assert_engine_has_derivatives(wrong_once)
    with pytest.raises(AssertionError) as caught:
        assert_engine_has_derivatives(wrong_twice)
    said = str(caught.value)
    assert "gradgradcheck of tiny: " in said and "forward mode of tiny: " in said
    assert "\ngradcheck" not in "\n" + said


def test_named_engines_skip_what_they_lack_and_must_be_here():
    assert not {c.name for c in comparison.comparisons("reference", torch.device("cpu"))} ^ {
        f"{case.name}, {dtype}" for case in CASES for dtype in ("float16", "bfloat16", "float32", "float64")
    }
    plain = table.Engine("plain", ("cpu",), (torch.float32,), lambda: None, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ENGINES", (plain,))
        names = [check.name for check in comparison.comparisons("plain", torch.device("cpu"))]
        assert names == [f"{case.name}, float32" for case in CASES if not case.variants]
        assert not derivatives.derivatives("plain", torch.device("cpu")), "it has no float64"
    with pytest.raises(ArgumentError, match="engine: expected one of"):
        assert_engine_matches_reference("cudnn")
    with pytest.raises(RuntimeError, match=r"engine 'cpp' cannot serve bfloat16 on meta"):
        assert_engine_matches_reference("cpp", device="meta")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(comparison.comparisons, "__defaults__", (None, (Case("tiny", T=2, B=1, I=1, H=2),)))
    monkeypatch.setattr(derivatives, "SMALL", (Case("tiny", T=2, B=1, I=1, H=2),))
    monkeypatch.setattr(triton, "unavailable", lambda: "not here")


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lstm_fused", *arguments])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return ended.value.code


def test_the_command_checks_the_engines(monkeypatch, capsys, short):
    assert main(monkeypatch, "--check") == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if "passed" in line] == [
        f"{n} on cpu" for n in HERE
    ]
    assert "reference on cpu: passed 7 checks in " in said
    monkeypatch.setattr(comparison, "largest", lambda values: torch.nan)
    assert main(monkeypatch, "--check", "--engine", "reference") == 1
    said = capsys.readouterr().out
    assert "reference on cpu: FAILED 4 of 7 checks in " in said and "\n  tiny, float16: " in said
    assert "cpp on" not in said
    assert main(monkeypatch) == 0
    assert "checks in" not in capsys.readouterr().out


def test_the_command_says_what_it_cannot_check(monkeypatch, capsys, short):
    assert main(monkeypatch, "--engine", "cpp") == 2
    assert "--engine and --device go with --check" in capsys.readouterr().err
    assert main(monkeypatch, "--check", "--engine", "cudnn") == 2
    if cpp.unavailable() is None:
        said = main(monkeypatch, "--check", "--engine", "cpp", "--device", "meta")
        assert said.startswith("engine 'cpp' cannot serve bfloat16 on meta")
    assert "device" in main(monkeypatch, "--check", "--engine", "reference", "--device", "abacus")


def test_the_progress_bar(monkeypatch, capsys, short):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert command.check_engines("reference", None)
    drawn = capsys.readouterr().err
    assert "reference on cpu [" + "#" * 4 + "." * 26 + "] 1/7 tiny, bfloat16" in drawn
    assert drawn.endswith("\r\x1b[K")
