"""Plots the loss and accuracy of a training run."""

from collections.abc import Sequence
from pathlib import Path

from files import write_figure
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from trainer import Epoch

TRAIN, TEST, GREY = "#8a9bb0", "#c2452d", "#666666"


def draw(history: Sequence[Epoch], title: str, path: Path) -> None:
    """Plot loss and accuracy over the epochs.

    Args:
        history: one entry per epoch.
        title: title of the figure.
        path: PNG file to write.
    """
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        for part, colour in (("train", TRAIN), ("test", TEST)):
            values = [getattr(epoch, f"{part}_{name}") for epoch in history]
            axes.plot(epochs, values, color=colour, marker=".", label=part)
        axes.set_xlabel("epoch", color=GREY)
        axes.set_title(name, loc="left", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_minor_locator(NullLocator())
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(frameon=False)
    right.set_ylim(top=1)
    right.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    last = history[-1].test_accuracy
    end = (len(history), last)
    right.annotate(f"{100 * last:.1f} %", end, (0, -16), textcoords="offset points", ha="right", color=TEST)
    write_figure(path, figure, dpi=150)
