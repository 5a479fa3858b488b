"""A random search over all options, against an oracle that shares no code with the package.

`make test` runs a short search, `make fuzz` one of any length.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from fuzz_draws import Draw, draw
from fuzz_problem import Problem
from harness import extended, largest
from oracle import Array
from torch import Tensor

# Largest error, relative to the largest magnitude of the tensor: far above rounding, far below a fault.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.3}
# Share of the largest gradient that an error may also be relative to: cancellation leaves rounding of that
# size.
BESIDE = 1e-2


def check(d: Draw, generator: torch.Generator) -> float:
    """Compare one draw with the oracle; return its largest error as a share of the tolerance.

    Raises:
        AssertionError: an output or gradient is wrong.
    """
    problem = Problem(d, generator)
    if d.transform == "vmap":
        return check_vmap(problem)
    exact = problem.exact(problem.x)
    states = {"h0": problem.h0, "c0": problem.c0} if d.states else {}
    leaves = {n: t.detach().requires_grad_() for n, t in {"x": problem.x, **states}.items()}
    at = leaves["x"], leaves.get("h0", problem.h0), leaves.get("c0", problem.c0)
    if d.transform == "jvp":
        return check_jvp(problem, exact)
    out = problem.call(*at)
    with torch.no_grad():
        alone = problem.call(problem.x, problem.h0, problem.c0)
    leaves |= problem.parameters
    loss = sum((out[n] * problem.w[n]).sum() for n in out)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {n: t.detach() for n, t in out.items()}
    found |= {f"d_{n}": g for n, g in zip(leaves, grads, strict=True)}
    gradients = max(largest(v) for n, v in exact.items() if n.startswith("d_"))
    # In bfloat16 rounding decides whether c is clipped, and a layer norm may divide by a variance near 0.
    rounded = d.dtype == torch.bfloat16 and (d.cell_clip is not None or d.layer_norm)
    most = 0.0
    for name, value in found.items():
        assert value.shape == exact[name].shape and value.dtype == d.dtype, f"{name}: {tuple(value.shape)}"
        if rounded and name.startswith("d_"):
            continue
        beside = BESIDE * gradients if name.startswith("d_") else 0.0
        most = max(most, off(name, d, value, exact[name], beside))
        if name in alone:
            most = max(most, off(f"{name} without gradients", d, alone[name], exact[name], beside))
    return most


def off(name: str, d: Draw, value: Tensor, exact: Array, beside: float = 0.0) -> float:
    """Return the error of one tensor as a share of the tolerance."""
    allowed = TOLERANCE[d.dtype] * max(largest(exact), beside, 1e-3)
    error = largest(extended(value) - exact) / allowed
    assert error <= 1, f"{name} is off by {error * TOLERANCE[d.dtype]:.2g} of its size"
    return error


def check_vmap(problem: Problem) -> float:
    """Check three inputs under vmap against the oracle's result for each."""
    x = torch.stack([problem.x, 2 * problem.x, problem.x.flip(-1)])
    out = torch.vmap(lambda x: problem.call(x, problem.h0, problem.c0))(x)
    exact = [problem.exact(each) for each in x]
    return max(
        off(f"{n} under vmap", problem.d, out[n][k], exact[k][n])
        for n in ("y", "h_n", "c_n")
        for k in range(3)
    )


def check_jvp(problem: Problem, exact: dict[str, Array]) -> float:
    """Check a directional derivative (jvp) against the oracle's gradient."""

    def loss(x: Tensor, h0: Tensor = problem.h0, c0: Tensor = problem.c0) -> Tensor:
        out = problem.call(x, h0, c0)
        return torch.stack([(out[n] * problem.w[n]).sum() for n in out]).sum()

    tangents = problem.tangents
    at = tuple(getattr(problem, n).clone() for n in tangents)  # PyTorch takes no expanded tensors here
    _, slope = torch.func.jvp(loss, at, tuple(tangents.values()))
    along = [exact[f"d_{n}"] * extended(t) for n, t in tangents.items()]
    expected, size = (np.asarray(sum(v.sum() for v in values)) for values in (along, map(np.abs, along)))
    return off("the derivative in one direction", problem.d, slope, expected, float(size))


def search(seed: int, first: int, last: int | None, done: Callable[[int, Draw, float], bool]) -> str | None:
    """Check draws of a seed in order until ``done`` is true; return the first failure as a line, or None."""
    n = first
    while last is None or n < last:
        d, generator = draw(seed, n)
        try:
            error = check(d, generator)
        except Exception as fault:
            what = str(fault).partition("\n")[0]
            what = what if isinstance(fault, AssertionError) else f"{type(fault).__name__}: {what}"
            return f'make fuzz ARGS="--seed {seed} --only {n}": {what}: {d}'
        n += 1
        if done(n, d, error):
            break
    return None


def main() -> int:
    """Parse the command line and search for the given time."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Random options against the oracle.")
    parser.add_argument("--minutes", type=float, default=1.0, help="time to search (default: 1)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the draws (default: the day)")
    parser.add_argument("--only", type=int, default=None, help="check only this draw of the seed")
    args = parser.parse_args()
    seed = int(time.time() // 86400) if args.seed is None else args.seed
    if args.only is not None:
        d, generator = draw(seed, args.only)
        print(d)
        print(f"right: its error is {check(d, generator):.0%} of the tolerance")
        return 0
    start, shown, worst = time.monotonic(), 0.0, 0.0

    def done(n: int, d: Draw, error: float) -> bool:
        nonlocal shown, worst
        seconds, worst = time.monotonic() - start, max(worst, error)
        if seconds >= shown:
            shown += 10
            print(f"seed {seed}: {n} draws in {seconds:.0f} s, errors up to {worst:.0%} of the tolerance")
            sys.stdout.flush()
        return seconds >= 60 * args.minutes

    try:
        failure = search(seed, 0, None, done)
    except KeyboardInterrupt:
        failure = None
        print()
    if failure:
        print(failure)
        return 1
    print(f"seed {seed}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
