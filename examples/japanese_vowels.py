"""Classify nine speakers by one vowel, with a bidirectional LSTM on sequences of unequal length: see --help.

The data set is Japanese Vowels (Kudo, Toyama and Shimbo 1999): 12 cepstral coefficients per step, 7 to 29
steps, 270 training utterances and 370 test utterances. The settings were chosen by 5-fold cross-validation on
the 270.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.ticker import PercentFormatter
from study import GREY, PEEPHOLE, PLAIN, options, panels, report, run, table, until_interrupted
from torch import Tensor, nn
from vowels import CHANNELS, SPEAKERS, Utterances, load

import lstm_fused

BATCH = 30


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    epochs: int
    cells: int  # of each direction


PLANS = {"quick": Plan(10, 16), "default": Plan(60, 100), "full": Plan(200, 200)}


class Task(NamedTuple):
    """One training run."""

    plan: Plan
    peephole: bool
    seed: int
    fold: int | None = None  # fold of the training set to test on; None: the test set


class Speaker(nn.Module):
    """A bidirectional LSTM and a linear layer on the last state of each direction."""

    def __init__(self, cells: int, peephole: bool) -> None:
        super().__init__()
        self.lstm = lstm_fused.LSTM(CHANNELS, cells, batch_first=True, bidirectional=True, peephole=peephole)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2 * cells, SPEAKERS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Score every speaker: [B, T, 12] to [B, 9]."""
        _, (h_n, _) = self.lstm(x, lengths=lengths)  # forward: state at the length, reverse: at step 0
        logits: Tensor = self.head(self.dropout(torch.cat([*h_n], dim=1)))
        return logits


def split(task: Task) -> tuple[Utterances, Utterances]:
    """Return the training and the test set, both normalized with the training set's mean and deviation."""
    train, test = load()
    if task.fold is not None:
        held = torch.arange(len(train.y)) % 5 == task.fold  # the 30 of each speaker are consecutive
        train, test = Utterances(*(t[~held] for t in train)), Utterances(*(t[held] for t in train))
    valid = torch.arange(train.x.shape[1]) < train.lengths[:, None]
    location, scale = train.x[valid].mean(0), train.x[valid].std(0)
    return train._replace(x=(train.x - location) / scale), test._replace(x=(test.x - location) / scale)


def train(task: Task) -> list[float]:
    """Train and return the accuracy after each epoch."""
    torch.manual_seed(task.seed)
    learnt, tested = split(task)
    model = Speaker(task.plan.cells, task.peephole)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    updates = task.plan.epochs * -(-len(learnt.y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=updates)
    accuracies = []
    for _ in range(task.plan.epochs):
        model.train()
        for batch in torch.randperm(len(learnt.y)).split(BATCH):
            x, lengths, y = (t[batch] for t in learnt)
            noisy = x + 0.3 * torch.randn_like(x)
            optimizer.zero_grad()
            F.cross_entropy(model(noisy, lengths), y, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            right = model(tested.x, tested.lengths).argmax(1) == tested.y
        accuracies.append(right.float().mean().item())
    return accuracies


def main(argv: Sequence[str] | None = None) -> int:
    """Train with and without peepholes, report and plot the accuracies; return the exit status."""
    opts = options(__doc__, seeds=5, argv=argv)
    plan = PLANS[opts.size]
    names = {True: "peephole LSTM", False: "LSTM"}
    folds = (0, 1, 2, 3, 4)
    tested = [Task(plan, peephole, seed) for peephole in names for seed in range(opts.seeds)]
    validated = [Task(plan, True, 0, fold) for fold in folds] if opts.size != "quick" else []
    tasks = [*tested, *validated]
    accuracies = dict(zip(tasks, run(train, tasks, opts.jobs), strict=True))

    figure, (axes,) = panels(1, 1, f"Japanese Vowels: mean and range of {opts.seeds} seeds")
    rows = []
    for peephole, colour, style in ((True, PEEPHOLE, "-"), (False, PLAIN, "--")):
        curves = [accuracies[task] for task in tested if task.peephole == peephole]
        epochs, by_epoch = range(1, plan.epochs + 1), list(zip(*curves, strict=True))
        axes.fill_between(epochs, [*map(min, by_epoch)], [*map(max, by_epoch)], color=colour, alpha=0.25)
        axes.plot(epochs, [*map(mean, by_epoch)], style, color=colour, label=names[peephole])
        rows.append([names[peephole], "370 to test on", str(len(curves)), *spread([c[-1] for c in curves])])
    if validated:
        last = [accuracies[task][-1] for task in validated]
        rows.append([names[True], "fifths of the 270", str(len(last)), *spread(last)])
    axes.set_ylim(0.7, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("epoch", color=GREY)
    axes.set_ylabel("test accuracy", color=GREY)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    heading = ("both directions", "tested on", "runs", "mean accuracy", "least", "largest")
    report(opts, "japanese_vowels", table(heading, rows), figure)
    return 0


def spread(values: Sequence[float]) -> list[str]:
    """Return mean, minimum and maximum in percent."""
    return [f"{100 * value:.1f} %" for value in (mean(values), min(values), max(values))]


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
