"""No result, no time: each module is held against the reference in float64 before it is raced."""

from functools import lru_cache
from statistics import geometric_mean

import torch
from torch import Tensor, nn

from bench.limits import arithmetic
from bench.rivals import Problem, Rival, fused, make_problem, training
from bench.sizes import Setting
from lstm_fused.backends.table import select
from tests.cases import Case
from tests.cases import shortened as cut

ENOUGH = 20e9  # FLOP of a training step; larger sizes are checked over fewer steps
# In units of the reference's own error in the same dtype: rounding gives a few (nn.LSTM's bias gradients 30,
# a sum over all steps and rows in one float), the smallest mistake thousands.
WRONG = 100
WANTED = 2  # of ours
# How one draw happens to be rounded is luck, and of the errors of many tensors the largest is the luckless
# one. So ours is the mean of several draws, unless the first leaves no doubt.
DRAWS = 8
CLEAR = 1.5


class Refused(Exception):
    """Why somebody is not timed."""


class Wrong(Refused):
    """A wrong result."""


def check(rival: Rival, case: Case, setting: Setting) -> float:
    """The largest error of any output or gradient, in units of the reference's own error in the same dtype.

    Where that is less than rounding the exact value to the dtype may be off by, the unit is the rounding. Of
    ours it is the geometric mean over several draws, where one is not enough to tell.

    Raises:
        Refused: the engine cannot serve the dtype.
        Wrong: an error is too large to come from rounding.
    """
    if rival.name == "ours":
        try:
            select(setting.engine, torch.device("cpu"), setting.dtype)
        except RuntimeError as refusal:
            raise Refused(str(refusal)) from None
    case = shortened(case, setting)
    errors: dict[str, list[float]] = {}
    for seed in range(DRAWS if rival.name == "ours" else 1):
        problem = make_problem(case, setting, seed)
        found = results(rival.make(problem), problem)
        for name, error in errors_of(found, case, setting, rival.peephole, seed).items():
            errors.setdefault(name, []).append(error)
        worst = max(map(geometric_mean, errors.values()))
        if worst <= CLEAR:
            break
    return worst


def shortened(case: Case, setting: Setting) -> Case:
    """A case over fewer steps, where all of them would take long to check."""
    share = min(1.0, ENOUGH / arithmetic(case, setting, "training"))
    return cut(case, max(2, int(case.T * share)))


def compare(found: dict[str, Tensor], case: Case, setting: Setting, peephole: bool) -> float:
    """The largest error of what somebody found, as `check` states it.

    Raises:
        Wrong: an error is too large to come from rounding.
    """
    return max(errors_of(found, case, setting, peephole).values())


def errors_of(
    found: dict[str, Tensor], case: Case, setting: Setting, peephole: bool, seed: int = 0
) -> dict[str, float]:
    """The error of each output and gradient of one draw, as `check` states it.

    Raises:
        Wrong: an error is too large to come from rounding.
    """
    exact, units, roundings = yardstick(case, setting, peephole, seed)
    errors = {
        name: max(largest(value.double() - exact[name]), roundings[name]) / units[name]
        for name, value in found.items()
    }
    wrong = [f"{name} by {error:.0f}" for name, error in errors.items() if not error <= WRONG]
    if wrong:
        raise Wrong("wrong result, in units of the reference's error: " + ", ".join(wrong))
    return errors


@lru_cache(maxsize=DRAWS)
def yardstick(
    case: Case, setting: Setting, peephole: bool, seed: int
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
    """What is right, what the reference is off by in this dtype, and what rounding costs in it."""
    problem = make_problem(case, setting, seed)
    exact, rounded = (
        results(fused(given, "reference", peephole), given) for given in (problem.to(torch.float64), problem)
    )
    unit = torch.finfo(setting.dtype).eps / 2
    roundings = {name: largest(value) * unit for name, value in exact.items()}
    errors = {
        name: max(largest(rounded[name].double() - value), roundings[name]) for name, value in exact.items()
    }
    return exact, errors, roundings


def results(module: nn.Module, problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    outputs, gradients = training(module, problem)
    names = ["d_x", "d_h0", "d_c0", *(f"d_{name}" for name, _ in module.named_parameters())]
    return dict(zip(["y", "h_n", "c_n", *names], (*outputs, *gradients), strict=True))


def largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    return tensor.abs().max().item()
