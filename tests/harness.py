"""Runs a case on an engine and compares its results with the reference in float64."""

from collections.abc import Iterable
from functools import cache
from itertools import product
from statistics import geometric_mean

import numpy as np
import torch
from cases import DEVICE, GAINS, NAMES, Case, make_lengths, make_masks, make_tensors
from oracle import Array, oracle
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence

import lstm_fused
from lstm_fused.backends.table import ENGINES

ENGINES_HERE = [engine for engine in ENGINES if not engine.why_not(torch.device(DEVICE), torch.float32)]
# On another device the reference is tested too, against itself on the CPU.
NATIVE = [engine.name for engine in ENGINES_HERE if engine.name != "reference" or DEVICE != "cpu"]
MAX_RATIO = 2  # of an engine's error to the reference's error in the same dtype
MAX_ULPS = 32  # of the reference's error, in ulps; the largest average observed is 7
DRAWS = 4  # at least: the largest error of a single draw of a small tensor is random
SEEDS = range(8)
PERTURBATIONS = 8  # of each seed, at most; 0 is the unperturbed draw


def call(
    engine: str, case: Case, tensors: dict[str, Tensor | None], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs and last states of one case."""
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
        gain_ih=t.get("gain_ih"),
        gain_hh=t.get("gain_hh"),
        hx=None if t["h0"] is None or t["c0"] is None else (t["h0"], t["c0"]),
        lengths=make_lengths(case, "cpu"),
        reverse=case.reverse,
        **make_masks(case, t["x"].dtype, seed, t["x"].device.type),
        cell_clip=case.cell_clip,
        engine=engine,
    )
    return y, h_n, c_n


def weights_of(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Return weights for each output; the loss is the weighted sum of all outputs."""
    B, H, P = case.B, case.H, case.P or case.H
    generator = torch.Generator().manual_seed(seed + 1000)
    shapes = {"y": (case.T, B, P), "h_n": (B, P), "c_n": (B, H)}
    return {
        n: torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").bfloat16().to(dtype)
        for n, shape in shapes.items()
    }


def results(
    engine: str,
    case: Case,
    dtype: torch.dtype,
    seed: int = 0,
    wanted: Iterable[str] = (*NAMES, *GAINS),
    outputs: tuple[str, ...] = ("y", "h_n", "c_n"),
    device: str = DEVICE,
    perturbation: int = 0,
) -> dict[str, Tensor]:
    """Return the outputs of a case and the gradients of ``wanted`` for a weighted sum of ``outputs``."""
    tensors = make_tensors(case, dtype, seed, device, perturbation)
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if t is not None and n in wanted}
    out = dict(zip(("y", "h_n", "c_n"), call(engine, case, tensors, seed), strict=True))
    if leaves:
        weights = weights_of(case, dtype, seed)
        loss = sum((out[n] * weights[n].to(device)).sum() for n in outputs)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        out |= {f"d_{n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}
    return {n: t.detach().cpu() for n, t in out.items()}


def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences; torch's own creates the lengths on the default device but needs them on the CPU."""
    lengths = [len(sequence) for sequence in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


@cache
def reference_results(case: Case, dtype: torch.dtype, seed: int, perturbation: int = 0) -> dict[str, Array]:
    """Return cached `results` of the reference on the CPU."""
    found = results("reference", case, dtype, seed, device="cpu", perturbation=perturbation)
    return {n: extended(t) for n, t in found.items()}


@cache
def oracle_results(case: Case, seed: int, perturbation: int = 0) -> dict[str, Array]:
    """Return the results of the oracle in extended precision."""
    tensors = make_tensors(case, torch.float64, seed, "cpu", perturbation)
    tensors |= make_masks(case, torch.float64, seed, "cpu")
    inputs = {n: extended(t) for n, t in tensors.items() if t is not None}
    return oracle(case, inputs, {n: extended(t) for n, t in weights_of(case, torch.float64, seed).items()})


def check_against_reference(
    engine: str,
    case: Case,
    dtype: torch.dtype,
    eps: float | None = None,
    wanted: Iterable[str] = (*NAMES, *GAINS),
) -> None:
    """Check that each output and gradient has at most twice the reference's error in this dtype.

    The exact values are those of the reference in float64, and for float64 those of the oracle. The reference
    in half precision is compared with its own float32 error in ulps; so are products in a shorter format,
    whose unit is ``eps``. Errors below half an ulp count as half an ulp. The reference's own error must be at
    most `MAX_ULPS`, because a wrong reference would excuse any error.

    The check takes the largest error of each draw, and bounds the geometric mean of the ratios over the
    draws: a single draw may amplify roundings a thousandfold, and how it rounds differs between processors,
    so that one of two equal engines may have forty times the error of the other. While it is uncertain on
    which side of the bound the mean is, more draws are measured, in the end perturbations of the same ones:
    they repeat a fault, but not the roundings.
    """
    ratios: dict[str, list[float]] = {}
    units: dict[str, list[float]] = {}
    for n, (perturbation, seed) in enumerate(product(range(PERTURBATIONS), SEEDS), 1):
        for name, (off, reference_off, unit) in errors(
            engine, case, dtype, eps, wanted, seed, perturbation
        ).items():
            ratios.setdefault(name, []).append(off / reference_off)
            units.setdefault(name, []).append(reference_off / unit)
        if n % DRAWS == 0 and not any(map(in_doubt, ratios.values())):
            break
    wrong = [
        f"{name}: {ratio:.3g} times the reference's error, over {len(found)} draws"
        for name, found in ratios.items()
        if not (ratio := geometric_mean(found)) <= MAX_RATIO
    ]
    wrong += [
        f"{name}: the reference has an error of {unit:.3g} ulps"
        for name, found in units.items()
        if not (unit := geometric_mean(found)) <= MAX_ULPS
    ]
    assert not wrong, f"{engine}, {case.name}, {dtype}: " + "; ".join(wrong)


def errors(
    engine: str,
    case: Case,
    dtype: torch.dtype,
    eps: float | None,
    wanted: Iterable[str],
    seed: int,
    perturbation: int,
) -> dict[str, tuple[float, float, float]]:
    """Return by name the error of an engine in one draw, the reference's error, and an ulp."""
    measured = torch.float32 if engine == "reference" and dtype != torch.float64 else dtype
    eps = eps or torch.finfo(dtype).eps
    exact = reference_results(case, torch.float64, seed, perturbation)
    if dtype == torch.float64:
        exact = oracle_results(case, seed, perturbation)
    rounded = reference_results(case, measured, seed, perturbation)
    ours = results(engine, case, dtype, seed, wanted, perturbation=perturbation)
    missing = {f"d_{n}" for n in (*NAMES, *GAINS) if n not in wanted}
    assert ours.keys() == exact.keys() - missing
    found = {}
    for name, value in ((n, exact[n]) for n in ours):
        found_as = ours[name].dtype, ours[name].shape
        assert found_as == (dtype, value.shape), f"{case.name}: {name} is {found_as}"
        unit = largest(value) * eps or 2 * torch.finfo(dtype).tiny
        off = max(largest(extended(ours[name]) - value), unit / 2)
        reference_off = largest(rounded[name] - value) * eps / torch.finfo(measured).eps
        found[name] = off, max(reference_off, unit / 2), unit
    return found


def in_doubt(ratios: list[float]) -> bool:
    """Return whether the geometric mean is within two standard errors of the bound, or three of few draws."""
    logs = np.log(ratios)
    if not np.isfinite(logs).all():
        return False
    width = 2 if len(logs) > DRAWS else 3
    return bool(abs(logs.mean() - np.log(MAX_RATIO)) < width * logs.std(ddof=1) / len(logs) ** 0.5)


def extended(tensor: Tensor) -> Array:
    """Convert to numpy's extended precision."""
    return tensor.detach().double().numpy().astype(np.longdouble)


def largest(values: Array) -> float:
    """Return the largest magnitude: infinite if there is a NaN, 0 without elements."""
    found = float(np.abs(values).max()) if values.size else 0.0
    return np.inf if np.isnan(found) else found
