"""The GPU's table as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from bench.plots import GREY, MET, OTHER, SHORT, draw_ratios, label_ratios

if TYPE_CHECKING:
    from bench.gpu.speed import Row

# Each contender's colour, and how far above a size's line it stands.
MARKS = {"nn.LSTM": (SHORT, 0.2), "cell": (OTHER, 0), "torch.compile": (MET, -0.2)}


def draw(rows: "Sequence[Row]", title: str, path: Path) -> None:
    """Draw everyone's time over ours with quartiles, forward and training, a line for each size and dtype."""
    names = [f"{row.shape} {row.dtype}" for row in rows]
    figure = Figure(figsize=(10, 0.32 * len(names) + 1.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, what in zip(panels, ("forward", "training"), strict=True):
        for who, (colour, above) in MARKS.items():
            found = {place - above: row.ratios[what].get(who) for place, row in enumerate(rows)}
            draw_ratios(axes, {place: seen for place, seen in found.items() if seen}, "o", colour, who)
        label_ratios(axes, f"{what}: time ÷ ours", names)
    figure.supxlabel("thin line: quartiles", x=0.99, ha="right", fontsize=8, color=GREY)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=150)
