"""Run a case on an engine, and hold its results against the reference in float64."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from cases import NAMES, Case, make_tensors
from oracle import Array, oracle
from torch import Tensor

import lstm_fused
from lstm_fused.backends import ENGINES

ENGINES_HERE = [engine for engine in ENGINES if engine.unavailable() is None]
NATIVE = [engine.name for engine in ENGINES_HERE if engine.name != "reference"]
# The largest error of a small tensor is a matter of luck; over this many draws, two correct orders of
# summation stay within a factor of two of each other.
SEEDS = range(8)


def call(engine: str, case: Case, tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and last states of one case."""
    t = tensors
    assert t["x"] is not None and t["weight_ih"] is not None and t["weight_hh"] is not None
    y, (h_n, c_n) = lstm_fused.lstm(
        t["x"],
        t["weight_ih"],
        t["weight_hh"],
        t["bias_ih"],
        t["bias_hh"],
        peephole=t["peephole"],
        weight_hr=t["weight_hr"],
        hx=None if t["h0"] is None or t["c0"] is None else (t["h0"], t["c0"]),
        lengths=None if case.lengths is None else torch.tensor(case.lengths),
        reverse=case.reverse,
        engine=engine,
    )
    return y, h_n, c_n


def weights_of(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """The loss whose gradients are compared is the sum of each output times these."""
    B, H, P = case.B, case.H, case.P or case.H
    generator = torch.Generator().manual_seed(seed + 1000)
    shapes = {"y": (case.T, B, P), "h_n": (B, P), "c_n": (B, H)}
    return {
        n: torch.randn(shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).to(dtype)
        for n, shape in shapes.items()
    }


def results(
    engine: str,
    case: Case,
    dtype: torch.dtype,
    seed: int = 0,
    wanted: Iterable[str] = NAMES,
    outputs: tuple[str, ...] = ("y", "h_n", "c_n"),
) -> dict[str, Tensor]:
    """The outputs of a case, and the gradients of ``wanted`` for a fixed weighting of ``outputs``."""
    tensors = make_tensors(case, dtype, seed)
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if t is not None and n in wanted}
    out = dict(zip(("y", "h_n", "c_n"), call(engine, case, tensors), strict=True))
    if leaves:
        weights = weights_of(case, dtype, seed)
        loss = sum((out[n] * weights[n]).sum() for n in outputs)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        out |= {f"d_{n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}
    return {n: t.detach() for n, t in out.items()}


@cache
def reference_results(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Array]:
    """`results` of the reference, which many engines and dtypes are held against."""
    return {n: extended(t) for n, t in results("reference", case, dtype, seed).items()}


@cache
def oracle_results(case: Case, seed: int) -> dict[str, Array]:
    """The same from the oracle in extended precision."""
    tensors = make_tensors(case, torch.float64, seed)
    inputs = {n: extended(t) for n, t in tensors.items() if t is not None}
    return oracle(case, inputs, {n: extended(t) for n, t in weights_of(case, torch.float64, seed).items()})


def check_against_reference(engine: str, case: Case, dtype: torch.dtype) -> None:
    """Each output and gradient may be off by twice what the reference itself is off by in this dtype.

    What is exact comes from the reference in float64; for float64 from the oracle. The reference's own half
    precision is held against its float32 error in units of the last place. Where the reference errs less
    than rounding the exact value to the dtype may, that rounding is the bound.
    """
    measured = torch.float32 if engine == "reference" else dtype
    units = torch.finfo(dtype).eps / torch.finfo(measured).eps
    errors: dict[str, list[float]] = {}
    for seed in SEEDS:
        exact = reference_results(case, torch.float64, seed)
        if dtype == torch.float64:
            exact = oracle_results(case, seed)
        rounded = reference_results(case, measured, seed)
        ours = results(engine, case, dtype, seed)
        assert ours.keys() == exact.keys()
        for name, value in exact.items():
            found_as = ours[name].dtype, ours[name].shape
            assert found_as == (dtype, value.shape), f"{case.name}: {name} is {found_as}"
            one_rounding = largest(value) * torch.finfo(dtype).eps / 2
            found = errors.setdefault(name, [0.0, 0.0])
            found[0] = max(found[0], largest(extended(ours[name]) - value))
            found[1] = max(found[1], largest(rounded[name] - value) * units, one_rounding)
    wrong = [
        f"{name}: off by {ours:.2e}, the reference by {bound:.2e}"
        for name, (ours, bound) in errors.items()
        if not ours <= 2 * bound
    ]
    assert not wrong, f"{engine}, {case.name}, {dtype}: " + "; ".join(wrong)


def extended(tensor: Tensor) -> Array:
    """The same numbers in numpy's extended precision."""
    return tensor.detach().double().numpy().astype(np.longdouble)


def largest(values: Array) -> float:
    """The largest magnitude; NaN if there is one, 0 for nothing."""
    return float(np.abs(values).max()) if values.size else 0.0
