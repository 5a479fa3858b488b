"""Compares the outputs and gradients of an engine with the reference in float64."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_fused.backends import table
from lstm_fused.errors import bad
from lstm_fused.testing.cases import (
    CASES,
    Case,
    Run,
    arguments,
    lacks,
    leaves_of,
    run_of,
    with_leaves,
)

# An error may be this many times the largest of three: the error of the reference in this dtype, the change
# that one ulp in every argument causes, and so many ulps of the largest element. The tests of the repository
# bound the mean over many draws by 2; this is a single draw.
FACTOR, ULPS = 4, 8


class Check(NamedTuple):
    """One step of a check: raises AssertionError if the engine is wrong."""

    name: str
    run: Callable[[], None]


def assert_engine_matches_reference(
    engine: str | Run,
    *,
    device: torch.device | str = "cpu",
    dtypes: Iterable[torch.dtype] | None = None,
    cases: Iterable[Case] = CASES,
) -> None:
    """Check outputs and gradients against the reference in float64, which runs on the CPU.

    An error may be 4 times the largest of three: the error that the reference itself has in the same dtype,
    the change that one unit in the last place (ulp) of every argument causes, and 8 ulps of the result's
    largest element.

    Args:
        engine: the name of an engine, or a function that takes those arguments of `lstm_fused.lstm` that a
            case has, by name, and returns y and (h_n, c_n).
        device: device of the tensors.
        dtypes: dtypes of the tensors; by default all that the named engine takes, or float32 and float64.
        cases: what to run; a named engine skips the variants that it does not compute.

    Raises:
        AssertionError: a result is wrong, or a case fails with an error; the message lists all of them.
        ArgumentError: no engine has that name, a dtype is not a floating-point one, or there is nothing to
            check.
        RuntimeError: the named engine cannot run on this device, or not in one of the dtypes.

    Example:
        >>> from functools import partial
        >>> from lstm_fused.testing import assert_engine_matches_reference
        >>> def mine(input, weight_ih, weight_hh, **others):
        ...     return lstm_fused.lstm(input, weight_ih, weight_hh, **others)
        >>> assert_engine_matches_reference(mine)
        >>> assert_engine_matches_reference("reference", dtypes=[torch.bfloat16])
    """
    report(comparisons(engine, torch.device(device), dtypes, cases))


def comparisons(
    engine: str | Run,
    device: torch.device,
    dtypes: Iterable[torch.dtype] | None = None,
    cases: Iterable[Case] = CASES,
) -> list[Check]:
    """The checks of `assert_engine_matches_reference`, one for each case and dtype."""
    cases = tuple(cases)  # a generator serves one dtype only
    if dtypes is None:
        dtypes = default_dtypes(engine, device)
    else:
        dtypes = tuple(dtypes)
        for dtype in dtypes:
            if not dtype.is_floating_point:
                raise bad("dtypes", "floating-point dtypes", dtype)
            if isinstance(engine, str):
                table.select(engine, device, dtype)  # raises if the engine cannot run it on this device
    checks = [
        Check(f"{case.name}, {table.short(dtype)}", partial(compare, engine, case, dtype, device))
        for dtype in dtypes
        for case in cases
        if not lacks(engine, case, dtype, device)
    ]
    if not checks:
        raise bad("dtypes and cases", "some that the engine computes", "none")
    return checks


def default_dtypes(engine: str | Run, device: torch.device) -> list[torch.dtype]:
    """The dtypes of a named engine on a device; those of most functions otherwise."""
    if not isinstance(engine, str):
        return [torch.float32] if device.type == "mps" else [torch.float32, torch.float64]
    (row,) = table.named(engine)
    table.select(engine, device, row.dtypes[0])  # raises if the engine cannot run on this device
    return [dtype for dtype in row.dtypes if dtype != torch.float64 or device.type != "mps"]


def report(checks: Iterable[Check]) -> None:
    """Run all checks and raise one AssertionError with the messages of those that fail."""
    wrong = [said for check in checks if (said := outcome(check)) is not None]
    if wrong:
        raise AssertionError("\n".join(wrong))


def outcome(check: Check) -> str | None:
    """Run a check: None if it passes, else one line."""
    try:
        check.run()
    except AssertionError as error:
        return f"{check.name}: {error}"
    except Exception as error:  # of an engine: any
        return f"{check.name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return None


def compare(engine: str | Run, case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Compare one case in one dtype."""
    cpu, reference = torch.device("cpu"), run_of("reference")
    exact = results(reference, arguments(case, torch.float64, cpu))
    moved = results(reference, nudged(arguments(case, torch.float64, cpu), torch.finfo(dtype).eps))
    rounded = results(reference, arguments(case, dtype, cpu))
    found = results(run_of(engine), arguments(case, dtype, device))
    wrong = []
    for name, wanted in exact.items():
        if name not in found:
            wrong.append(f"{name} is missing")
            continue
        shown = found[name]
        if (shown.dtype, shown.shape) != (dtype, wanted.shape):
            wrong.append(f"{name} is {table.short(shown.dtype)} of shape {tuple(shown.shape)}")
            continue
        off = largest(shown.double() - wanted)
        sizes = largest(rounded[name].double() - wanted), largest(moved[name] - wanted)
        allowed = FACTOR * max(*sizes, ULPS * torch.finfo(dtype).eps * largest(wanted))
        if not off <= allowed:
            wrong.append(f"{name} is off by {off:.2g} where {allowed:.2g} is allowed")
    if wrong:
        raise AssertionError(", ".join(wrong))


def results(run: Run, given: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs, and the gradients of a weighted sum of them, on the CPU."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves_of(given).items()}
    y, (h_n, c_n) = run(**with_leaves(given, leaves))
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator).bfloat16().to(out)).sum()
        for out in outputs.values()
    )
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    outputs |= {f"the gradient of {n}": g for n, g in zip(leaves, gradients, strict=True) if g is not None}
    return {name: value.detach().cpu() for name, value in outputs.items()}


def nudged(given: dict[str, Any], by: float) -> dict[str, Any]:
    """The arguments with every differentiable one larger or smaller by a share of itself."""
    generator = torch.Generator().manual_seed(2)

    def nudge(t: Tensor) -> Tensor:
        signs = torch.randint(0, 2, t.shape, generator=generator).to(t) * 2 - 1
        return t * (1 + by * signs)

    return with_leaves(given, {name: nudge(leaf) for name, leaf in leaves_of(given).items()})


def largest(values: Tensor) -> float:
    """The largest magnitude; infinite if there is a NaN, 0 without elements."""
    return float(values.abs().nan_to_num(nan=torch.inf).max()) if values.numel() else 0.0
