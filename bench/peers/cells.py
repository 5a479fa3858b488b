"""Contestants that are cells, called with x [B, I] as torch.nn.LSTMCell is."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

import lstm_fused
from bench.check import DRAWS
from bench.peers.modules import Module, require_engine, without_peepholes
from bench.problem import STEPS, Problem, States
from bench.race import Call


class OneStep(nn.Module):
    """A cell as a layer over one step, with the weights of a problem."""

    def __init__(self, cell: nn.Module, problem: Problem, peephole: bool) -> None:
        super().__init__()
        weights = problem.weights if peephole else without_peepholes(problem.weights)
        cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in weights.items()})
        self.cell = cell

    def forward(self, x: Tensor, hx: States) -> tuple[Tensor, States]:
        """Run the cell over x [1, B, I]."""
        h, c = self.cell(x[0], (hx[0][0], hx[1][0]))
        return h[None], (h[None], c[None])


def fused_cell(problem: Problem, engine: str | None, peephole: bool = True) -> OneStep:
    """`lstm_fused.LSTMCell` by one of its engines."""
    I, H, dtype = problem.case.I, problem.case.H, problem.setting.dtype
    cell = lstm_fused.LSTMCell(I, H, dtype=dtype, peephole=peephole, engine=engine)
    return OneStep(cell, problem, peephole)


def ours(problem: Problem) -> OneStep:
    """`lstm_fused.LSTMCell` by the engine of the setting.

    Raises:
        Refused: the engine cannot serve the dtype.
    """
    require_engine(problem.setting)
    return fused_cell(problem, problem.setting.engine)


def torch_cell(problem: Problem) -> OneStep:
    """`torch.nn.LSTMCell`, which has no peepholes."""
    cell = nn.LSTMCell(problem.case.I, problem.case.H, dtype=problem.setting.dtype)
    return OneStep(cell, problem, peephole=False)


@dataclass(frozen=True)
class Cell(Module):
    """A cell, checked as a layer over one step and timed as it is."""

    def enter(self, problem: Problem, stack: ExitStack) -> tuple[float | None, Mapping[str, Call]]:
        """Check it, and make it; see `bench.race.Contestant`."""
        error, cell = self.check(problem.case, problem.setting), self.make(problem).get_submodule("cell")
        inputs, gradients = (tuple(t[0] for t in three) for three in (problem.inputs, problem.gradients))
        step = replace(problem, inputs=inputs, gradients=gradients[1:])  # h is one output, not y and h_n
        return error, {what: partial(STEPS[what], cell, step) for what in self.can}


CELLS = (
    Cell("ours", ours, partial(fused_cell, engine="reference"), draws=DRAWS),
    Cell("torch.nn", torch_cell, partial(fused_cell, engine="reference", peephole=False)),
)
