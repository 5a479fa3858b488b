"""A day's own programs: python -m bench.gpu.looks WHAT NAMES, which main lists.

A line that starts with BAD says what is wrong; the exit status is 1 then.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import torch
from lstm_fused.kernels import choose
from torch import Tensor

import lstm_fused
from bench.check import largest
from bench.gpu import rows
from bench.gpu.machine import describe, mend_interpreter
from bench.gpu.times import exchange, numbers, profile
from bench.gpu.tune import kernel_named, operators
from lstm_fused.backends.table import select, short
from tests.cases import Case, make_lengths, make_tensors

# In units of the step-by-step engine's own error: rounding gives a few, the smallest mistake thousands.
WRONG = 30
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BF16, FP16 = torch.bfloat16, torch.float16
# H, B, dtype and rows of a tile (None: as chosen): many programs, and more rows than fit at once.
GRIDS = {
    "H768": (768, 16, BF16, None),
    "H1024": (1024, 16, BF16, None),
    "H512": (512, 64, BF16, 16),
    "tiles-32": (1024, 64, BF16, 32),
    "tiles-64": (512, 256, FP16, 64),
    "waves": (512, 1500, FP16, None),
    "two-at-once": (256, 16, FP16, None),
    "two-too-many": (512, 64, FP16, None),
    "graph": (256, 16, BF16, None),
    "wide": (768, 256, BF16, None),
    "rows": (128, 500, BF16, None),
}
REPEATS = 200
Outcome = tuple[Tensor, ...]


def probe(device: str) -> bool:
    """What this machine is."""
    if device == "cuda":
        # Before anything else, for even this may hang.
        facts = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.used,memory.total"
        with suppress(OSError):
            subprocess.run(["nvidia-smi", f"--query-gpu={facts}", "--format=csv"], check=False)
    machine = describe(device)
    print(machine, flush=True)
    rows.add("machine", **asdict(machine), processors=os.cpu_count(), node=platform.machine())
    if device == "cuda":
        print(torch.cuda.get_device_properties(0))
    return True


def smoke(kernel: str, device: str, small: bool) -> bool:
    """The smallest problems in every dtype, plain and with all that a layer may be given."""
    plain = Case("H5_B3", T=3, B=3, I=4, H=5)
    uneven = replace(plain, name="H5_B3_lengths_reverse", lengths=(3, 0, 2), reverse=True)
    lengths = tuple(n % 4 for n in range(17))
    tiles = Case("H19_B17_lengths_reverse", T=3, B=17, I=4, H=19, lengths=lengths, reverse=True)
    cases = (plain, uneven) if small else (plain, tiles)
    problems = list(product(cases, DTYPES))
    engine, named = (None, None) if kernel == "default" else ("triton", kernel)
    if engine is None:  # the package may check each kernel first: fewer of them
        problems = [(tiles, torch.float32), (tiles, BF16)]
        print("engine:", select(None, torch.device(device), torch.float32), lstm_fused.engines(), flush=True)
    with kernel_named(named):
        return all(
            [
                judge(f"{kernel} {case.name} {short(dtype)}", partial(error_of, engine, case, dtype, device))
                for case, dtype in problems
            ]
        )


def judge(name: str, error: Callable[[], float], limit: float = WRONG) -> bool:
    """Say how far off it is; False if that is too far, or if it cannot be told."""
    try:
        found = error()
    except Exception as problem:  # the next one may run
        if isinstance(problem, RuntimeError) and "cannot run" in str(problem):
            return not_run(name, problem)
        print(f"BAD {name}: {type(problem).__name__}: {str(problem)[:500]}", flush=True)
        rows.add("look", name=name, right=False, problem=f"{type(problem).__name__}: {str(problem)[:500]}")
        return False
    right = found <= limit
    print(
        f"{'ok ' if right else 'BAD'} {name}: off by {found:.3g} times the reference's own error", flush=True
    )
    rows.add("look", name=name, right=right, error=found)
    return right


def not_run(name: str, refusal: RuntimeError) -> bool:
    """Say that a kernel takes no such layer, which is no fault."""
    print(f"-- {name}: not run: {str(refusal)[:300]}", flush=True)
    rows.add("look", name=name, right=None, problem=str(refusal)[:300])
    return True


def error_of(engine: str | None, case: Case, dtype: torch.dtype, device: str) -> float:
    """The largest error of any output or gradient, in units of the step-by-step engine's in that dtype."""
    exact = outcome("reference", case, torch.float64, device)
    rounded = outcome("reference", case, dtype, device)
    found = outcome(engine, case, dtype, device)
    tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    unit = 2**-11 if tf32 else torch.finfo(dtype).eps / 2
    worst = 0.0
    for ours, reference, value in zip(found, rounded, exact, strict=True):
        off = largest(ours.double() - value) / max(
            largest(reference.double() - value), largest(value) * unit, 1e-300
        )
        worst = off if not off <= worst else worst  # a NaN stays
    return worst


def outcome(engine: str | None, case: Case, dtype: torch.dtype, device: str) -> Outcome:
    """Outputs and gradients; the gradients of the outputs are the outputs of another draw."""
    tensors = {n: t for n, t in make_tensors(case, dtype, device=device).items() if t is not None}
    leaves = [t.requires_grad_() for t in tensors.values()]
    hx = tensors.pop("h0"), tensors.pop("c0")
    given = make_lengths(case, device)
    y, (h_n, c_n) = lstm_fused.lstm(
        tensors["x"],
        tensors["weight_ih"],
        tensors["weight_hh"],
        tensors["bias_ih"],
        tensors["bias_hh"],
        peephole=tensors["peephole"],
        hx=hx,
        lengths=given,
        reverse=case.reverse,
        engine=engine,
    )
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(t.shape, generator=generator).bfloat16().to(device, dtype) for t in (y, h_n, c_n)]
    return (y.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad((y, h_n, c_n), leaves, douts))


def grid(kernel: str, name: str, device: str, small: bool) -> bool:
    """Many programs at once: right, and every time the same bits."""
    H, B, dtype, tile = GRIDS[name]
    case = Case(name, T=2, B=3, I=3, H=5) if small else Case(name, T=32, B=B, I=64, H=H)
    with kernel_named(kernel), tiles_of(tile):
        try:
            for direction in ("forward", "backward"):
                layer = choose.Layer(direction, case.H, case.B, dtype, "ieee")
                card = choose.card_at(torch.device(device, 0) if device == "cuda" else torch.device(device))
                plan = choose.choose(layer, card, kernel)
                print(f"{direction}: {plan}, grid {plan.grid(case.B, case.H)}", flush=True)
        except RuntimeError as refusal:  # there are no such tiles
            return not_run(f"{kernel} {name}", refusal)
        right = judge(
            f"{kernel} {name}, H {case.H}, B {case.B}, {short(dtype)}",
            partial(error_of, "triton", case, dtype, device),
        )
        right &= same_bits(f"{kernel} {name}", operators(case, dtype, device), 2 if small else REPEATS)
        if device == "cuda" and "graph" in name:
            right &= captured(f"{kernel} {name}", operators(case, dtype, device))
        if device == "cuda" and name.startswith("two"):
            right &= two_at_once(f"{kernel} {name}", operators(case, dtype, device))
    return right


@contextmanager
def tiles_of(height: int | None) -> Iterator[None]:
    """Let the table offer the forward pass tiles of so many rows alone; backward may have none such."""
    every = choose.plans
    if height is not None:
        choose.plans = lambda kernel, layer: (
            plan for plan in every(kernel, layer) if layer.direction == "backward" or height == plan.BB
        )
    try:
        yield
    finally:
        choose.plans = every


Calls = dict[str, Callable[[], object]]


def tensors_of(found: object) -> list[Tensor]:
    """Those that a call gave."""
    assert isinstance(found, tuple | list)
    return [t for t in found if isinstance(t, Tensor)]


def same_bits(name: str, calls: Calls, repeats: int) -> bool:
    """Whether a call gives the same every time."""

    def differing() -> float:
        other = 0
        for call in calls.values():
            first = tensors_of(call())
            for _ in range(repeats):
                other += not all(map(torch.equal, first, tensors_of(call())))
        return float(other)

    return judge(f"{name}, launches of {2 * repeats} that differ in bits", differing, 0)


def captured(name: str, calls: Calls) -> bool:
    """Whether a graph of the user's gives the same."""

    def differing() -> float:
        other = 0
        for call in calls.values():
            wanted = tensors_of(call())
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            try:
                with torch.cuda.graph(graph):
                    found = tensors_of(call())
            except RuntimeError as refusal:  # a driver may not capture launches of one whole grid
                print(f"{name}: not captured: {refusal}", flush=True)
                break
            for _ in range(20):
                graph.replay()
            torch.cuda.synchronize()
            other += not all(map(torch.equal, found, wanted))
        return float(other)

    return judge(f"{name}, graphs that differ", differing, 0)


def two_at_once(name: str, calls: Calls) -> bool:
    """Whether launches that wait for their own programs get along on two streams."""

    def differing() -> float:
        other = 0
        streams = [torch.cuda.Stream() for _ in range(2)]
        for call in calls.values():
            wanted = tensors_of(call())
            torch.cuda.synchronize()
            for _ in range(50):
                found = []
                for stream in streams:
                    with torch.cuda.stream(stream):
                        found.append(tensors_of(call()))
                torch.cuda.synchronize()
                other += sum(not all(map(torch.equal, one, wanted)) for one in found)
        return float(other)

    return judge(f"{name}, launches on two streams that differ", differing, 0)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.looks", description=__doc__)
    parser.add_argument("what", choices=("probe", "smoke", "grid", "numbers", "exchange", "profile"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    parser.add_argument("--without", nargs="*", default=[])
    given = parser.parse_args()
    mend_interpreter()
    device, small = given.device, given.small
    run = {
        "probe": lambda: probe(device),
        "smoke": lambda: all([smoke(name, device, small) for name in given.names]),
        "grid": lambda: all([grid(given.names[0], name, device, small) for name in given.names[1:]]),
        "numbers": lambda: numbers(given.names, given.dtypes, device, small, given.once, given.without),
        "exchange": lambda: exchange(*given.names),
        "profile": lambda: profile(device, small, given.plain),
    }
    sys.exit(not run[given.what]())


if __name__ == "__main__":
    main()
