"""Learn to measure and to generate intervals, with and without peepholes, on several seeds: see --help.

After Gers, Schraudolph and Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks", JMLR 3, 2002.
Measuring: the input is zero except for spikes, each P or P - 1 steps after the one before, at random; the
output tells at each spike which. Generating: the input is zero; the output is a spike every P steps.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from study import (
    GREY,
    OTHER,
    PEEPHOLE,
    PLAIN,
    chrono,
    legend,
    options,
    panels,
    report,
    run,
    table,
    until_interrupted,
)
from torch import Tensor, nn

import lstm_fused

CELLS, BATCH, CHECK_EVERY = 8, 16, 25
INTERVALS, TESTED = 8, 100  # measuring: intervals per sequence; test sequences
AHEAD, SPIKES = 4, 20  # generating: spikes trained beyond those that succeed; spikes of the test


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    periods: dict[str, tuple[int, ...]]  # P, by task
    updates: int  # maximum number of updates


PLANS = {
    "quick": Plan({"measuring": (4,), "generating": (3,)}, 500),
    "default": Plan({"measuring": (10, 20), "generating": (10,)}, 3000),
    "full": Plan({"measuring": (10, 20, 30, 40, 50), "generating": (10, 20, 30, 40, 50)}, 100_000),
}


@dataclass(frozen=True)
class Model:
    """Whether there are peepholes, and their learning rate relative to the other weights."""

    peephole: bool
    rate: float
    colour: str


# A peephole multiplies c, which in a counting cell is ten times as large as the other weights' operands.
MODELS = {
    "LSTM": Model(False, 1.0, PLAIN),
    "peephole LSTM": Model(True, 1.0, PEEPHOLE),
    "peepholes learn at a tenth": Model(True, 0.1, OTHER),
}


class Task(NamedTuple):
    """One training run."""

    kind: str  # "measuring" or "generating"
    model: str  # of MODELS
    period: int
    seed: int
    updates: int  # maximum number of updates


class Outcome(NamedTuple):
    """Result of one training run."""

    best: float  # largest share of correct intervals, or of test spikes before the first mistake
    updates: int | None  # updates until a test without a mistake; None: not solved


class Timer(nn.Module):
    """One layer with one output per step. All models of a seed start as the same function."""

    def __init__(self, model: Model, period: int) -> None:
        super().__init__()
        self.head = nn.Linear(CELLS, 1)
        self.lstm = lstm_fused.LSTM(1, CELLS, peephole=False)
        chrono(self.lstm, period)
        if model.peephole:
            without = self.lstm.state_dict()
            self.lstm = lstm_fused.LSTM(1, CELLS)
            self.lstm.load_state_dict(without | {"weight_peephole_l0": torch.zeros(3 * CELLS)})

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, B, 1] to logits [T, B]."""
        logits: Tensor = self.head(self.lstm(x)[0]).squeeze(2)
        return logits

    def groups(self, rate: float, peephole_rate: float) -> list[dict[str, object]]:
        """Return parameter groups with their learning rates."""
        peepholes = [p for name, p in self.named_parameters() if "peephole" in name]
        others = [p for name, p in self.named_parameters() if "peephole" not in name]
        return [{"params": others, "lr": rate}, {"params": peepholes, "lr": rate * peephole_rate}]


def draw_measuring(period: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw spikes [T, B, 1] and labels [T, B]: at spikes whether the interval was long, else NaN."""
    longer = torch.randint(2, (INTERVALS, B), generator=generator)
    times, rows = (period - 1 + longer).cumsum(0), torch.arange(B).expand(INTERVALS, B)
    x = torch.zeros(INTERVALS * period + 1, B, 1)
    x[0] = x[times, rows] = 1
    y = torch.full(x.shape[:2], torch.nan)
    y[times, rows] = longer.float()
    return x, y


def draw_generating(period: int, spikes: int) -> tuple[Tensor, Tensor]:
    """Return zero inputs [T, 1, 1] and the spikes to generate [T, 1]."""
    x, y = torch.zeros(spikes * period, 1, 1), torch.zeros(spikes * period, 1)
    y[period - 1 :: period] = 1
    return x, y


def mistakes(logits: Tensor, y: Tensor) -> Tensor:
    """Return where a label exists and the answer is wrong."""
    return ~y.isnan() & ((logits > 0) != (y > 0.5))


def spikes_kept(logits: Tensor, y: Tensor, period: int) -> int:
    """Return the number of spikes before the first mistake."""
    wrong = mistakes(logits, y).flatten().nonzero()
    return (int(wrong[0]) if len(wrong) else len(y)) // period


def train(task: Task) -> Outcome:
    """Train until a test is passed without a mistake or the maximum number of updates is reached."""
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    model = Timer(MODELS[task.model], task.period)
    optimizer = torch.optim.Adam(model.groups(0.01, MODELS[task.model].rate))
    x_test, y_test = draw_measuring(task.period, TESTED, torch.Generator().manual_seed(1_000_000))
    if task.kind == "generating":
        x_test, y_test = draw_generating(task.period, SPIKES)
    best, kept = 0.0, 0
    for update in range(1, task.updates + 1):
        x, y = draw_measuring(task.period, BATCH, generator)
        if task.kind == "generating":  # the sequence grows with the success so far
            x, y = draw_generating(task.period, min(SPIKES, kept + AHEAD))
        logits, asked = model(x), ~y.isnan()
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits[asked], y[asked]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if task.kind == "generating":
            kept = spikes_kept(logits, y, task.period)
        if update % CHECK_EVERY == 0:
            with torch.no_grad():
                logits = model(x_test)
            wrong, asked = mistakes(logits, y_test), ~y_test.isnan()
            if task.kind == "measuring":
                best = max(best, 1 - wrong.sum().item() / asked.sum().item())
            else:
                best = max(best, spikes_kept(logits, y_test, task.period) / SPIKES)
            if not wrong.any():
                return Outcome(best, update)
    return Outcome(best, None)


def main(argv: Sequence[str] | None = None) -> int:
    """Train all models, report and plot what they solved; return the exit status."""
    opts = options(__doc__, seeds=10, argv=argv)
    plan = PLANS[opts.size]
    tasks = [
        Task(kind, model, period, seed, plan.updates)
        for kind, periods in plan.periods.items()
        for period, model, seed in product(periods, MODELS, range(opts.seeds))
    ]
    outcomes = dict(zip(tasks, run(train, tasks, opts.jobs), strict=True))
    kinds = [(kind, period) for kind, periods in plan.periods.items() for period in periods]

    figure, axes = panels(1, len(kinds), "Solved without a mistake")
    rows = []
    for (kind, period), each in zip(kinds, axes, strict=True):
        cells = [kind, f"{period - 1} or {period}" if kind == "measuring" else f"every {period}"]
        for place, (name, model) in enumerate(MODELS.items()):
            found = [o for task, o in outcomes.items() if task[:3] == (kind, name, period)]
            solved = sorted(o.updates for o in found if o.updates is not None)
            how = f"{median(solved):.0f} updates" if solved else f"best {max(o.best for o in found):.0%}"
            cells.append(f"{len(solved)} of {opts.seeds}, {how}")
            count = [*range(len(solved) + 1), len(solved)]
            count = [n + 0.012 * opts.seeds * (place - 1) for n in count]  # so that equal lines stay visible
            each.step([0, *solved, plan.updates], count, where="post", color=model.colour, label=name)
        rows.append(cells)
        each.set_title(f"{kind}, {cells[1]} steps", loc="left", fontsize=10)
        each.set_ylim(-0.03 * opts.seeds, 1.03 * opts.seeds)
        each.yaxis.set_major_locator(MaxNLocator(integer=True))
        each.set_xlabel("updates", color=GREY)
        each.set_ylabel(f"seeds solved, of {opts.seeds}", color=GREY)
    legend(figure, axes[0])
    report(opts, "timing", table(("task", "steps", *MODELS), rows), figure)
    return 0


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
