"""The GPU's table as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.plots import GREY, MET, OTHER, SHORT, plain

if TYPE_CHECKING:
    from bench.gpu.speed import Row

COLOURS = {"nn.LSTM": SHORT, "cell": OTHER, "torch.compile": GREY}


def draw(rows: "Sequence[Row]", title: str, path: Path) -> None:
    """Draw everyone's time over ours, forward and training, a line for each size and dtype."""
    names = [f"{row.shape} {row.dtype}" for row in rows]
    figure = Figure(figsize=(10, 0.26 * len(names) + 1.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, what in zip(panels, ("forward", "training"), strict=True):
        for who, colour in COLOURS.items():
            found = {place: ratio for place, row in enumerate(rows) if (ratio := row.ratio(what, who))}
            axes.plot([*found.values()], [*found], "o", color=colour, markersize=5, label=who)
        axes.axvline(1, color=MET, linewidth=1.2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{what}: time ÷ ours", loc="left", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        plain(axes)
        axes.grid(alpha=0.25)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=150)
