"""Run a case on an engine, and hold its results against the reference in float64."""

from collections.abc import Iterable
from functools import cache
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
# On another device the reference, too, is held against itself on the CPU.
NATIVE = [engine.name for engine in ENGINES_HERE if engine.name != "reference" or DEVICE != "cpu"]
BOUND = 2  # on an engine's error, in the reference's own
SOUND = 32  # on the reference's, in units in the last place; on average up to 7 were seen
SEEDS = range(8)  # the largest error of one draw of a small tensor is a matter of luck
NEIGHBOURS = 8  # of each draw, at most


def call(
    engine: str, case: Case, tensors: dict[str, Tensor | None], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
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
    """The loss whose gradients are compared is the sum of each output times these."""
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
    near: int = 0,
) -> dict[str, Tensor]:
    """The outputs of a case, and the gradients of ``wanted`` for a fixed weighting of ``outputs``."""
    tensors = make_tensors(case, dtype, seed, device, near)
    leaves = {n: t.requires_grad_() for n, t in tensors.items() if t is not None and n in wanted}
    out = dict(zip(("y", "h_n", "c_n"), call(engine, case, tensors, seed), strict=True))
    if leaves:
        weights = weights_of(case, dtype, seed)
        loss = sum((out[n] * weights[n].to(device)).sum() for n in outputs)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        out |= {f"d_{n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}
    return {n: t.detach().cpu() for n, t in out.items()}


def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """PyTorch's own, which would make the lengths on the default device and then want them on the CPU."""
    lengths = [len(sequence) for sequence in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


@cache
def reference_results(case: Case, dtype: torch.dtype, seed: int, near: int = 0) -> dict[str, Array]:
    """`results` of the reference on the CPU, which many engines and dtypes are held against."""
    found = results("reference", case, dtype, seed, device="cpu", near=near)
    return {n: extended(t) for n, t in found.items()}


@cache
def oracle_results(case: Case, seed: int, near: int = 0) -> dict[str, Array]:
    """The same from the oracle in extended precision."""
    tensors = make_tensors(case, torch.float64, seed, "cpu", near)
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
    """Each output and gradient may be off by twice what the reference itself is off by in this dtype.

    What is exact comes from the reference in float64; for float64 from the oracle. The reference's own half
    precision is held against its float32 error in units of the last place, and so is what comes of products
    in a shorter format, whose unit is ``eps``. An error below what rounding the exact value costs counts as
    that rounding. A wrong reference would excuse anything: its own error must be some units in the last
    place, which is all that float64 asks of it, for libraries sum float32 in another order.

    Compared are the largest errors of each draw, for one draw may magnify every rounding a thousand times;
    what must stay below two is the geometric mean of their ratios. How a draw happens to be rounded is luck,
    and another on every make of processor: of two equal engines, one may be off forty times as far. So where
    eight draws leave the mean in doubt, on either side of the bound, neighbours of the same draws are
    measured too, in which a fault is there again and every rounding is another.
    """
    ratios: dict[str, list[float]] = {}
    units: dict[str, list[float]] = {}
    for near in range(NEIGHBOURS):
        for seed in SEEDS:
            for name, (off, reference_off, unit) in errors(
                engine, case, dtype, eps, wanted, seed, near
            ).items():
                ratios.setdefault(name, []).append(off / reference_off)
                units.setdefault(name, []).append(reference_off / unit)
        if not any(map(in_doubt, ratios.values())):
            break
    wrong = [
        f"{name}: off by {ratio:.3g} times what the reference is, by {len(found)} draws"
        for name, found in ratios.items()
        if not (ratio := geometric_mean(found)) <= BOUND
    ]
    wrong += [
        f"{name}: the reference is off by {unit:.3g} units in the last place"
        for name, found in units.items()
        if not (unit := geometric_mean(found)) <= SOUND
    ]
    assert not wrong, f"{engine}, {case.name}, {dtype}: " + "; ".join(wrong)


def errors(
    engine: str,
    case: Case,
    dtype: torch.dtype,
    eps: float | None,
    wanted: Iterable[str],
    seed: int,
    near: int,
) -> dict[str, tuple[float, float, float]]:
    """By name, what an engine is off by in one draw, what the reference is, and a unit in the last place."""
    measured = torch.float32 if engine == "reference" and dtype != torch.float64 else dtype
    eps = eps or torch.finfo(dtype).eps
    exact = reference_results(case, torch.float64, seed, near)
    if dtype == torch.float64:
        exact = oracle_results(case, seed, near)
    rounded = reference_results(case, measured, seed, near)
    ours = results(engine, case, dtype, seed, wanted, near=near)
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
    """Whether chance may have put the geometric mean on its side of the bound."""
    logs = np.log(ratios)
    return bool(abs(logs.mean() - np.log(BOUND)) < 2 * logs.std(ddof=1) / len(logs) ** 0.5)


def extended(tensor: Tensor) -> Array:
    """The same numbers in numpy's extended precision."""
    return tensor.detach().double().numpy().astype(np.longdouble)


def largest(values: Array) -> float:
    """The largest magnitude, infinite if there is a NaN, 0 for nothing."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max()) if values.size else 0.0
