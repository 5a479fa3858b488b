"""Pictures of records: ratios to ours, and growth."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.race import Record

OURS, MISSED, OTHER, THIRD, GREY = "#2f6f8f", "#c2452d", "#8a9bb0", "#c99a2e", "#666666"
SCALE = "Time ÷ ours: right of 1 is slower than lstm_fused, left is faster"
Name = Callable[[Record], str]


def draw_ratios(
    records: Sequence[Record], title: str, path: Path, panel: Name, line: Name, mark: Name
) -> bool:
    """Draw times over ours, all on one scale, with their quartiles and targets; whether there are any.

    Args:
        records: those without a ratio are left out.
        title: of the picture.
        path: the file to write.
        panel: the heading of a record's panel.
        line: the line of a panel that it stands on.
        mark: the name of its mark; a line may have up to three.
    """
    panels, lines, marks = (unique(name(r) for r in records if r.ratio) for name in (panel, line, mark))
    if not panels:
        return False
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width = 1.2 + (2.8 if columns > 2 else 4.4) * columns
    figure = Figure(figsize=(width, (0.3 * len(lines) + 0.8) * rows + 0.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    every = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    styles = dict(zip(marks, (("o", OURS), ("s", OTHER), ("^", THIRD)), strict=False))
    said = ""
    for record in records:
        if (ratio := record.ratio) is None:
            continue
        axes, (marker, colour) = every[panels.index(panel(record))], styles[mark(record)]
        above = 3  # the lines
        y = lines.index(line(record)) + 0.4 * ((marks.index(mark(record)) + 0.5) / len(marks) - 0.5)
        if target := record.targets.get("ratio"):
            if target.share < 1:
                colour, above = MISSED, 4  # and the other marks
            axes.plot([target.limit] * 2, [y - 0.3, y + 0.3], color="black", linewidth=2)
            said = ". Short upright line: target, red where missed"
        axes.plot([ratio.low, ratio.high], [y, y], color="black", linewidth=1)
        axes.plot(ratio.median, y, marker, color=colour, zorder=above)
    for axes, heading in zip(every, panels, strict=False):
        label_ratios(axes, heading, lines)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for name, (marker, colour) in styles.items():
        every[0].plot([], [], marker, color=colour, label=name)
    if len(marks) > 1:
        legend(figure, len(marks))
    figure.supxlabel(f"{SCALE}. Line: quartiles{said}", x=0.99, ha="right", fontsize=8, color=GREY)
    figure.savefig(path, dpi=150)
    return True


def label_ratios(axes: Axes, title: str, names: Sequence[str]) -> None:
    """A logarithmic axis of ratios, a line for each name, and one at 1."""
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=9)
    axes.tick_params(labelbottom=True)  # in every row: the last one may have fewer panels
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    plain(axes)
    axes.grid(axis="x", alpha=0.25)


def draw_speed(records: Sequence[Record], title: str, path: Path) -> bool:
    """A panel for each step and contestant."""
    others = [record for record in records if record.who != "ours"]
    return draw_ratios(*(others, title, path), lambda r: f"{r.what}\n{r.who}", lambda r: r.size, lambda r: "")


def draw_rivals(records: Sequence[Record], title: str, path: Path) -> bool:
    """A panel for each size, a line for each contestant."""
    return draw_ratios(*(records, title, path), lambda r: r.size, lambda r: r.who, lambda r: r.what)


def draw_gpu(records: Sequence[Record], title: str, path: Path) -> bool:
    """A panel for each step, a line for each size and dtype."""
    others = [record for record in records if record.who != "lstm_fused"]
    return draw_ratios(
        *(others, title, path),
        lambda r: r.what,
        lambda r: f"{r.shape} {r.dtype}",
        lambda r: r.who,
    )


def draw_growth(records: Sequence[Record], title: str, path: Path) -> bool:
    """Draw time against T, B and H, and how it would be if it grew as the arithmetic does."""
    timed = [record for record in records if record.milliseconds is not None]
    sweeps = unique(record.size.split(" = ")[0] for record in timed)
    if not sweeps:
        return False
    figure = Figure(figsize=(3.6 * len(sweeps), 3.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for axes, name in zip(
        figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0], sweeps, strict=True
    ):
        for what, marker in (("training", "o"), ("forward", "s")):
            for who, colour in (("nn.LSTM", OTHER), ("ours", OURS)):
                found = [
                    r for r in timed if r.size.startswith(f"{name} =") and (r.what, r.who) == (what, who)
                ]
                values = [int(record.size.split(" = ")[1]) for record in found]
                times = [record.milliseconds or 0 for record in found]
                axes.plot(values, times, color=colour, marker=marker, markersize=4, label=f"{who}, {what}")
            as_arithmetic = [times[0] * (record.arithmetic or 1) for record in found]
            label = "ours, if it grew as the arithmetic" if what == "forward" else None
            axes.plot(values, as_arithmetic, color=GREY, linestyle=":", linewidth=1.2, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.set_xlabel(name, color=GREY)
        plain(axes)
        axes.grid(alpha=0.25)
    left = figure.axes[0]
    left.set_ylabel("ms", color=GREY)
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, 3)
    figure.savefig(path, dpi=150)
    return True


def unique(names: Iterable[str]) -> list[str]:
    """In the order in which they come first."""
    return list(dict.fromkeys(names))


def legend(figure: Figure, columns: int) -> None:
    """One legend for all panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def plain(axes: Axes) -> None:
    """No frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


KINDS = {
    **dict.fromkeys(("speed", "deep"), draw_speed),
    **dict.fromkeys(("rivals", "lengths"), draw_rivals),
    "growth": draw_growth,
}
