"""Compares results with float64 before anything is timed."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import inf
from statistics import geometric_mean

import torch
from torch import Tensor, nn

from bench.cases import Setting, arithmetic
from bench.problem import Problem, make_problem, results
from tests.cases import Case
from tests.cases import shortened as cut

ENOUGH = 20e9  # FLOP of a training step; larger sizes are checked over fewer steps
# In units of the reference's own error in the same dtype: rounding gives a few (nn.LSTM's bias gradients 30,
# a sum over all steps and rows in one float), the smallest mistake thousands.
WRONG = 100.0
WANTED = 2.0  # of ours
# The largest of many errors depends on one unlucky rounding. So ours is the mean over several draws, unless
# the first draw is clearly good.
DRAWS = 8
CLEAR = 1.5

Make = Callable[[Problem], nn.Module]


class Refused(Exception):
    """The reason why a contestant is not timed."""


class Wrong(Refused):
    """A wrong result."""


def check(
    make: Make, truth: Make, case: Case, setting: Setting, draws: int = 1, limit: float = WRONG
) -> float:
    """The largest error of any output or gradient: geometric mean over draws, in units of `compare`.

    Args:
        make: the module to check.
        truth: the module that is right, in float64 and, but for rounding, in the dtype of the setting.
        case: the size.
        setting: dtype, device, layers.
        draws: problems to draw at most.
        limit: the largest error that rounding explains.

    Raises:
        Wrong: an error is above the limit.
    """
    errors: dict[str, list[float]] = {}
    for seed in range(draws):
        problem = make_problem(case, setting, seed)
        found = results(make(problem), problem)
        for name, error in compare(found, truth, case, setting, seed, limit).items():
            errors.setdefault(name, []).append(error)
        worst = max(map(geometric_mean, errors.values()))
        if worst <= CLEAR:
            break
    return worst


def shortened(case: Case, setting: Setting) -> Case:
    """The case over fewer steps if all of them would take long to check."""
    share = min(1.0, ENOUGH / arithmetic(case, setting, "training"))
    return cut(case, max(2, int(case.T * share)))


def compare(
    found: dict[str, Tensor], truth: Make, case: Case, setting: Setting, seed: int = 0, limit: float = WRONG
) -> dict[str, float]:
    """The error of each output and gradient of one draw, in units of the truth's own error in this dtype.

    Raises:
        Wrong: an error is above the limit.
    """
    exact, rounded = yardstick(truth, case, setting, seed)
    tf32 = setting.engine == "triton" and in_tf32(setting.dtype)
    errors = {name: relative_error(value, rounded[name], exact[name], tf32) for name, value in found.items()}
    wrong = [f"{name} by {error:.0f}" for name, error in errors.items() if not error <= limit]
    if wrong:
        raise Wrong("wrong result, in units of the reference's error: " + ", ".join(wrong))
    return errors


@lru_cache(maxsize=DRAWS)
def yardstick(
    truth: Make, case: Case, setting: Setting, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The results of the truth in float64 and in the dtype of the setting; of float64, in float32."""
    narrow = torch.float32 if setting.dtype == torch.float64 else setting.dtype
    problem = make_problem(case, replace(setting, dtype=narrow), seed)
    wide = make_problem(case, replace(setting, dtype=torch.float64), seed)
    return results(truth(wide), wide), results(truth(problem), problem)


def in_tf32(dtype: torch.dtype) -> bool:
    """True if a GPU may form products of this dtype in tf32."""
    return dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"


def relative_error(found: Tensor, rounded: Tensor, exact: Tensor, tf32: bool) -> float:
    """The error of ``found`` over that of ``rounded``, each at least that of rounding ``exact``.

    Where ``rounded`` has another dtype, its error is scaled to that of ``found`` by their epsilons.
    """
    eps = torch.finfo(found.dtype).eps
    rounding = largest(exact) * (2**-11 if tf32 else eps / 2)
    error = max(largest(found.double() - exact), rounding)
    own = largest(rounded.double() - exact) * eps / torch.finfo(rounded.dtype).eps
    error /= max(own, rounding, 1e-300)
    return error if error == error else inf


def largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    return tensor.abs().max().item()
