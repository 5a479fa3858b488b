"""Compare a plain RNN, an LSTM and a peephole LSTM on growing gaps: see --help.

There are two tasks. Recall: the first step shows one of eight symbols, distractors follow, and the last step
asks for the symbol. Adding (Hochreiter and Schmidhuber 1997): two numbers in the first half are marked, and
the answer is their sum. The study also shows the norm of d loss / d x_t against the distance of x_t from the
loss.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import NamedTuple

import torch
from gaps import KINDS, Kind
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from study import (
    GREY,
    OTHER,
    PEEPHOLE,
    PLAIN,
    RNN,
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

HIDDEN, BATCH, CHECK_EVERY, TESTED = 32, 32, 25, 1000


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    gaps: dict[str, tuple[int, ...]]  # steps of a sequence, by task
    updates: dict[str, int]  # maximum number of updates, by task
    distances: tuple[int, ...]  # steps back at which gradients are reported


PLANS = {
    "quick": Plan({"recall": (5,), "adding": (5,)}, {"recall": 300, "adding": 50}, (1, 5, 20)),
    "default": Plan(
        {"recall": (10, 30, 100, 300, 1000), "adding": (10, 30, 100, 300, 1000)},
        {"recall": 2000, "adding": 2000},
        (1, 10, 100, 999),
    ),
    "full": Plan(
        {"recall": (10, 30, 100, 300, 1000), "adding": (10, 30, 100, 300, 1000)},
        {"recall": 5000, "adding": 20000},
        (1, 10, 100, 999),
    ),
}


class Reader(nn.Module):
    """A recurrent layer and a linear layer on its last output."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(HIDDEN, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, I] to [B, outputs]."""
        logits: Tensor = self.head(self.layer(x)[0][-1])
        return logits


def plain_rnn(inputs: int, T: int) -> nn.Module:
    """torch.nn.RNN with default initialisation."""
    return nn.RNN(inputs, HIDDEN)


def large_rnn(inputs: int, T: int) -> nn.Module:
    """torch.nn.RNN with recurrent weights six times as large."""
    layer = nn.RNN(inputs, HIDDEN)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").mul_(6)
    return layer


def plain_lstm(inputs: int, T: int) -> nn.Module:
    """An LSTM without peepholes."""
    return chrono(lstm_fused.LSTM(inputs, HIDDEN, peephole=False), T)


def peephole_lstm(inputs: int, T: int) -> nn.Module:
    """An LSTM with peepholes."""
    return chrono(lstm_fused.LSTM(inputs, HIDDEN), T)


def forgetful_lstm(inputs: int, T: int) -> nn.Module:
    """An LSTM with default initialisation: forget gates near 1/2."""
    return lstm_fused.LSTM(inputs, HIDDEN, peephole=False)


TRAINED = {"nn.RNN": plain_rnn, "LSTM": plain_lstm, "peephole LSTM": peephole_lstm}
# For these only the gradients are shown.
UNTRAINED = {"nn.RNN, weight_hh × 6": large_rnn, "LSTM, forget bias near 0": forgetful_lstm}
MODELS = TRAINED | UNTRAINED
COLOURS = dict(zip(MODELS, (RNN, PLAIN, PEEPHOLE, GREY, OTHER), strict=True))
# The two LSTMs often coincide; a dashed line over a solid one shows both.
STYLES = dict.fromkeys(MODELS, "-") | {"peephole LSTM": "--"}


class Task(NamedTuple):
    """A sequence of trainings at longer and longer gaps."""

    kind: str  # of KINDS
    model: str  # of TRAINED
    seed: int
    gaps: tuple[int, ...]
    updates: int  # maximum per gap


class Outcome(NamedTuple):
    """Result of the training at one gap."""

    score: float
    updates: int | None  # updates until it was solved; None: not solved
    gradients: list[float]  # norm of d loss / d x_t, the last step first


def climb(task: Task) -> dict[int, Outcome]:
    """Train a new model at each gap, up to the first gap that is not solved."""
    outcomes: dict[int, Outcome] = {}
    for T in task.gaps:
        outcomes[T] = train(task, T)
        if outcomes[T].updates is None:
            break
    return outcomes


def train(task: Task, T: int) -> Outcome:
    """Train until a test on new sequences is passed or the maximum number of updates is reached."""
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    kind = KINDS[task.kind]
    model = Reader(MODELS[task.model](kind.inputs, T), kind.outputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x_test, y_test = kind.draw(T, TESTED, torch.Generator().manual_seed(1_000_000))
    score, passed, update = 0.0, False, 0
    while not passed and update < task.updates:
        x, y = kind.draw(T, BATCH, generator)
        optimizer.zero_grad()
        kind.loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update += 1
        if update % CHECK_EVERY == 0:
            with torch.no_grad():
                score = kind.score(model(x_test), y_test).item()
            passed = kind.passed(score)
    return Outcome(score, update if passed else None, gradients(model, kind, T))


def gradients(model: nn.Module, kind: Kind, T: int) -> list[float]:
    """Return the norm of the gradient at each step over a batch, in float64, the last step first."""
    x, y = kind.draw(T, BATCH, torch.Generator().manual_seed(0))
    x = x.double().requires_grad_()
    y = y.double() if y.is_floating_point() else y
    kind.loss(model.double()(x), y).backward()
    assert x.grad is not None
    norms: list[float] = x.grad.norm(dim=(1, 2)).flip(0).tolist()
    return norms


def untrained_gradients(T: int) -> dict[str, list[float]]:
    """Return the gradient norms of every model before training, on the recall task."""
    kind, found = KINDS["recall"], {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        found[name] = gradients(Reader(make(kind.inputs, T), kind.outputs), kind, T)
    return found


Climbs = dict[Task, dict[int, Outcome]]


def at(climbs: Climbs, kind: str, model: str, T: int) -> tuple[list[Outcome], int]:
    """Return the outcomes of a model at one gap, for the seeds tried there, and the number of all seeds."""
    of_model = [outcomes for task, outcomes in climbs.items() if task[:2] == (kind, model)]
    return [outcomes[T] for outcomes in of_model if T in outcomes], len(of_model)


def solved_table(climbs: Climbs, plan: Plan) -> str:
    """Table of how many seeds solved each task with each model, and after how many updates."""
    rows = []
    for kind, gaps in plan.gaps.items():
        for T in gaps:
            cells = [kind, f"{T:,}"]
            for model in TRAINED:
                tried, seeds = at(climbs, kind, model, T)
                updates = [o.updates for o in tried if o.updates is not None]
                how = "not tried, after it failed before"
                if updates:
                    how = f"{median(updates):.0f} updates"
                elif tried:
                    how = KINDS[kind].score_format.format(median(o.score for o in tried))
                cells.append(f"{len(updates)} of {seeds}, {how}")
            rows.append(cells)
    return table(("task", "steps", *TRAINED), rows)


def draw_solved(axes: Axes, kind: str, gaps: tuple[int, ...], climbs: Climbs) -> None:
    """Plot the share of seeds that solved a task against the number of steps."""
    for place, model in enumerate(TRAINED):
        shares = []
        for T in gaps:
            tried, seeds = at(climbs, kind, model, T)
            shares.append(100 * sum(o.updates is not None for o in tried) / seeds)
        shifted = [T * 1.06 ** (place - 1) for T in gaps]  # so that the marks do not overlap
        axes.plot(shifted, shares, "o" + STYLES[model], color=COLOURS[model], label=model)
    axes.set_xscale("log")
    axes.set_xticks(gaps, [f"{T:,}" for T in gaps])
    axes.minorticks_off()
    axes.set_ylim(-5, 105)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    axes.set_xlabel("steps", color=GREY)
    axes.set_ylabel("seeds solved", color=GREY)
    axes.set_title(kind, loc="left", fontsize=10)


def draw_gradients(axes: Axes, norms: dict[str, list[float]], title: str) -> None:
    """Plot norms against the distance from the loss; values outside the axes have vanished or exploded."""
    for model, values in norms.items():
        distances = [d for d, value in enumerate(values) if d and value > 0]
        shown = [values[d] for d in distances]
        axes.plot(distances, shown, STYLES[model], color=COLOURS[model], label=model)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yscale("log")
    axes.set_ylim(1e-12, 1e6)
    axes.set_ylabel("norm of d loss / d x_t", color=GREY)
    axes.set_xlabel("distance from the loss, steps", color=GREY)
    axes.set_title(title, loc="left", fontsize=10)


def main(argv: Sequence[str] | None = None) -> int:
    """Train all models, report what they solved and plot the gradients; return the exit status."""
    opts = options(__doc__, seeds=3, argv=argv)
    plan = PLANS[opts.size]
    tasks = [
        Task(kind, model, seed, gaps, plan.updates[kind])
        for kind, gaps in plan.gaps.items()
        for model, seed in product(reversed(TRAINED), range(opts.seeds))
    ]
    climbs = dict(zip(tasks, run(climb, tasks, opts.jobs), strict=True))
    untrained = untrained_gradients(plan.distances[-1] + 1)
    trained, rows = {}, []
    for task, outcomes in climbs.items():
        if (task.kind, task.seed) == ("recall", 0):
            T = max(outcomes)
            norms = trained[task.model] = outcomes[T].gradients
            said = "solved" if outcomes[T].updates is not None else "not solved"
            rows.append([f"{task.model}, {T:,} steps, {said}", *at_distances(norms, plan)])

    figure, (recall, adding, before, after) = panels(2, 2, "How far back can it look?")
    draw_solved(recall, "recall", plan.gaps["recall"], climbs)
    draw_solved(adding, "adding", plan.gaps["adding"], climbs)
    draw_gradients(before, untrained, "gradient before training")
    draw_gradients(after, trained, "gradient after training to recall, at the last gap tried")
    legend(figure, before)
    rows = [[f"{model}, untrained", *at_distances(norms, plan)] for model, norms in untrained.items()] + rows
    heading = ("norm of d loss / d x_t", *(f"{d:,} step{'s' if d > 1 else ''} back" for d in plan.distances))
    report(opts, "look_back", f"{solved_table(climbs, plan)}\n\n{table(heading, rows)}", figure)
    return 0


def at_distances(norms: list[float], plan: Plan) -> list[str]:
    """Format the norms for the table; empty if the sequence was shorter."""
    return [f"{norms[d]:.1e}" if d < len(norms) else "" for d in plan.distances]


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
