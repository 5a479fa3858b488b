"""How far back can it look? A plain RNN, an LSTM and a peephole LSTM at growing gaps: see --help.

Two tasks. Recall: a symbol, then distractors, then the question which of eight symbols it was. Adding
(Hochreiter and Schmidhuber 1997): of many numbers two are marked, both in the first half; what is their sum?
Then the reason: the norm of d loss / d x_t against the distance of x_t from the loss.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from study import GREY, OTHER, PEEPHOLE, PLAIN, RNN, chrono, options, panels, report, run, table
from torch import Tensor, nn

import lstm_fused

SYMBOLS, DISTRACTORS = 8, 2
HIDDEN, BATCH, CHECK_EVERY, TESTED = 32, 32, 25, 1000


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    gaps: dict[str, tuple[int, ...]]  # steps of a sequence, by task
    updates: dict[str, int]  # of the parameters at most, by task
    distances: tuple[int, ...]  # at which untrained gradients are told


PLANS = {
    "quick": Plan({"recall": (5,), "adding": (5,)}, {"recall": 300, "adding": 50}, (1, 5, 20)),
    "default": Plan(
        {"recall": (10, 30, 100, 1000), "adding": (10, 30, 100, 300)},
        {"recall": 1000, "adding": 1600},
        (1, 10, 100, 300),
    ),
    "full": Plan(
        {"recall": (10, 30, 100, 300, 1000), "adding": (10, 30, 100, 300, 1000)},
        {"recall": 5000, "adding": 20000},
        (1, 10, 100, 1000),
    ),
}


def draw_recall(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [T, B, I] whose first step shows a symbol and whose last asks for it; the symbols [B]."""
    symbol = torch.randint(SYMBOLS, (B,), generator=generator)
    steps = SYMBOLS + torch.randint(DISTRACTORS, (T, B), generator=generator)
    steps[0], steps[-1] = symbol, SYMBOLS + DISTRACTORS
    return F.one_hot(steps, SYMBOLS + DISTRACTORS + 1).float(), symbol


def draw_adding(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers from -1 to 1 and marks [T, B, 2]: one in the first tenth, one up to the half; sums [B, 1]."""
    early = max(1, min(10, T // 10))
    first = torch.randint(early, (B,), generator=generator)
    second = torch.randint(early, T // 2, (B,), generator=generator)
    numbers = torch.rand(T, B, generator=generator) * 2 - 1
    marks, rows = torch.zeros(T, B), torch.arange(B)
    marks[first, rows] = marks[second, rows] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0)[:, None]


def right(logits: Tensor, y: Tensor) -> Tensor:
    """The share of right symbols."""
    return (logits.argmax(1) == y).float().mean()


@dataclass(frozen=True)
class Kind:
    """One of the two tasks."""

    draw: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
    inputs: int
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    passed: Callable[[float], bool]
    said: str  # how a score reads


KINDS = {
    "recall": Kind(
        draw_recall,
        SYMBOLS + DISTRACTORS + 1,
        SYMBOLS,
        F.cross_entropy,
        right,
        lambda share: share >= 0.99,
        "{:.0%} right",
    ),
    # Who always says 0 has an error of 2/3.
    "adding": Kind(
        draw_adding, 2, 1, F.mse_loss, F.mse_loss, lambda error: error <= 0.01, "squared error {:.2f}"
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
    """torch.nn.RNN as it comes."""
    return nn.RNN(inputs, HIDDEN)


def large_rnn(inputs: int, T: int) -> nn.Module:
    """torch.nn.RNN with recurrent weights six times as large."""
    layer = nn.RNN(inputs, HIDDEN)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").mul_(6)
    return layer


def plain_lstm(inputs: int, T: int) -> nn.Module:
    """Without peepholes."""
    return chrono(lstm_fused.LSTM(inputs, HIDDEN, peephole=False), T)


def peephole_lstm(inputs: int, T: int) -> nn.Module:
    """With them."""
    return chrono(lstm_fused.LSTM(inputs, HIDDEN), T)


def forgetful_lstm(inputs: int, T: int) -> nn.Module:
    """An LSTM as it comes, with forget gates near 1/2."""
    return lstm_fused.LSTM(inputs, HIDDEN, peephole=False)


TRAINED = {"nn.RNN": plain_rnn, "LSTM": plain_lstm, "peephole LSTM": peephole_lstm}
# Of these only the gradients are shown.
UNTRAINED = {"nn.RNN, weight_hh × 6": large_rnn, "LSTM, forget bias near 0": forgetful_lstm}
MODELS = TRAINED | UNTRAINED
COLOURS = dict(zip(MODELS, (RNN, PLAIN, PEEPHOLE, GREY, OTHER), strict=True))


class Task(NamedTuple):
    """One training run."""

    kind: str  # of KINDS
    model: str  # of TRAINED
    T: int
    seed: int
    updates: int  # at most


class Outcome(NamedTuple):
    """How it ended."""

    score: float
    updates: int | None  # after how many it was solved
    gradients: list[float]  # norm of d loss / d x_t, the last step first


def train(task: Task) -> Outcome:
    """Train until a test on fresh sequences is passed, or until there are no updates left."""
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    kind = KINDS[task.kind]
    model = Reader(MODELS[task.model](kind.inputs, task.T), kind.outputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x_test, y_test = kind.draw(task.T, TESTED, torch.Generator().manual_seed(1_000_000))
    score, passed, update = 0.0, False, 0
    while not passed and update < task.updates:
        x, y = kind.draw(task.T, BATCH, generator)
        optimizer.zero_grad()
        kind.loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update += 1
        if update % CHECK_EVERY == 0:
            with torch.no_grad():
                score = kind.score(model(x_test), y_test).item()
            passed = kind.passed(score)
    return Outcome(score, update if passed else None, gradients(model, kind, task.T))


def gradients(model: nn.Module, kind: Kind, T: int) -> list[float]:
    """Norm of the gradient at each step, in float64, over a batch; the last step first."""
    x, y = kind.draw(T, BATCH, torch.Generator().manual_seed(0))
    x = x.double().requires_grad_()
    y = y.double() if y.is_floating_point() else y
    kind.loss(model.double()(x), y).backward()
    assert x.grad is not None
    norms: list[float] = x.grad.norm(dim=(1, 2)).flip(0).tolist()
    return norms


def untrained_gradients(T: int) -> dict[str, list[float]]:
    """Of every model as it is before training, on the recall task."""
    kind, found = KINDS["recall"], {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        found[name] = gradients(Reader(make(kind.inputs, T), kind.outputs), kind, T)
    return found


def solved_table(outcomes: dict[Task, Outcome]) -> str:
    """How many seeds solved each task with each model, and how fast."""
    rows = []
    for kind, T in dict.fromkeys((task.kind, task.T) for task in outcomes):
        cells = [kind, str(T)]
        for model in TRAINED:
            of_model = [o for task, o in outcomes.items() if task[:3] == (kind, model, T)]
            updates = [o.updates for o in of_model if o.updates is not None]
            score = KINDS[kind].said.format(median(o.score for o in of_model))
            how = f"{median(updates):.0f} updates" if updates else score
            cells.append(f"{len(updates)} of {len(of_model)}, {how}")
        rows.append(cells)
    return table(("task", "steps", *TRAINED), rows)


def draw_solved(axes: Axes, kind: str, outcomes: dict[Task, Outcome]) -> None:
    """The share of seeds that solved a task, against its steps."""
    gaps = sorted({task.T for task in outcomes if task.kind == kind})
    for place, model in enumerate(TRAINED):
        shares = []
        for T in gaps:
            solved = [o.updates is not None for task, o in outcomes.items() if task[:3] == (kind, model, T)]
            shares.append(100 * sum(solved) / len(solved))
        shifted = [T * 1.06 ** (place - 1) for T in gaps]  # else they hide each other
        axes.plot(shifted, shares, "o-", color=COLOURS[model], label=model)
    axes.set_xscale("log")
    axes.set_xticks(gaps, [f"{T:,}" for T in gaps])
    axes.minorticks_off()
    axes.set_ylim(-5, 105)
    axes.set_xlabel("steps", color=GREY)
    axes.set_title(f"{kind}: % of seeds solved", loc="left", fontsize=10)


def draw_gradients(axes: Axes, norms: dict[str, list[float]], title: str) -> None:
    """Norms against the distance from the loss."""
    for model, values in norms.items():
        distances = [d for d, value in enumerate(values) if value > 0]
        axes.plot(distances, [values[d] for d in distances], color=COLOURS[model], label=model)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-12)
    axes.set_xlabel("distance from the loss, steps", color=GREY)
    axes.set_title(title, loc="left", fontsize=10)


def main(argv: Sequence[str] | None = None) -> int:
    """Train everyone, tell who solved what, draw why; the exit status."""
    told = options(__doc__, seeds=3, argv=argv)
    plan = PLANS[told.size]
    tasks = [
        Task(kind, model, T, seed, plan.updates[kind])
        for kind, gaps in plan.gaps.items()
        for T, model, seed in product(sorted(gaps, reverse=True), TRAINED, range(told.seeds))
    ]
    outcomes = dict(zip(tasks, run(train, tasks, told.jobs), strict=True))
    outcomes = {task: outcomes[task] for task in sorted(outcomes, key=lambda task: (task.kind, task.T))}
    untrained = untrained_gradients(plan.distances[-1] + 1)
    longest = max(plan.gaps["recall"])
    trained = {
        model: outcomes[Task("recall", model, longest, 0, plan.updates["recall"])] for model in TRAINED
    }

    figure, (recall, adding, before, after) = panels(2, 2, "How far back can it look?")
    draw_solved(recall, "recall", outcomes)
    draw_solved(adding, "adding", outcomes)
    draw_gradients(before, untrained, "norm of d loss / d x_t before training")
    draw_gradients(
        after,
        {model: o.gradients for model, o in trained.items()},
        f"after training to recall, {longest:,} steps",
    )
    recall.legend(frameon=False, fontsize=8)
    before.legend(frameon=False, fontsize=7)
    norms = [
        [model, *(f"{values[distance]:.1e}" for distance in plan.distances)]
        for model, values in untrained.items()
    ]
    heading = ("norm of d loss / d x_t, untrained", *(f"{d} steps back" for d in plan.distances))
    report(told.out, "look_back", f"{solved_table(outcomes)}\n\n{table(heading, norms)}", figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
