"""The tables as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from bench import everyone, growth, speed
from bench.timing import Ratio

MET, SHORT, OTHER, GREY = "#2f6f8f", "#c2452d", "#8a9bb0", "#666666"
PANELS = (
    ("forward", "nn.LSTM", "forward, no gradients\nnn.LSTM ÷ ours"),
    ("training", "nn.LSTM", "training step\nnn.LSTM ÷ ours"),
    ("training", "cell", "training step\nstep-by-step cell ÷ ours"),
)


def draw_speed(rows: Sequence[speed.Row], title: str, path: Path) -> None:
    """Draw each size's ratios, with quartiles, beside their bars."""
    panels = [
        (
            heading,
            {
                place: race
                for place, row in enumerate(rows)
                for race in row.races
                if (race.what, race.rival) == (what, rival)
            },
        )
        for what, rival, heading in PANELS
    ]
    panels = [(heading, races) for heading, races in panels if races]
    if not panels:
        return
    names = [row.size for row in rows]
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 0.42 * len(names) + 1.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for axes, (heading, races) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        draw_races(axes, races)
        axes.set_title(heading, loc="left", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(
        "bold tick: what is asked; thin line: quartiles", x=0.01, ha="left", fontsize=8, color=GREY
    )
    figure.savefig(path, dpi=150)


def draw_races(axes: Axes, races: Mapping[int, speed.Race]) -> None:
    """One bar from 1 to each ratio, its quartiles as a whisker, what was asked as a tick."""
    for y, race in races.items():
        colour = MET if race.met else SHORT
        value = race.ratio.median
        axes.barh(y, value - 1, left=1, height=0.5, color=colour, alpha=0.85)
        axes.plot([race.ratio.low, race.ratio.high], [y, y], color="black", linewidth=1)
        axes.plot([race.bar] * 2, [y - 0.38, y + 0.38], color="black", linewidth=2)
    furthest = max(max(race.ratio.median, race.ratio.high, race.bar) for race in races.values())
    for y, race in races.items():
        end = max(race.ratio.median, race.ratio.high, race.bar, 1)
        axes.annotate(f"{race.ratio.median:.2f}", (end, y), (4, 0), textcoords="offset points", va="center",
                      fontsize=8, color=MET if race.met else SHORT)  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlim(right=furthest + 0.14 * (furthest - 0.5))
    plain(axes)
    axes.grid(axis="x", alpha=0.25)


def draw_growth(rows: Sequence[growth.Row], title: str, path: Path) -> None:
    """Draw time against T, B and H, and how it would be if it grew as the arithmetic does."""
    timed = [row for row in rows if row.milliseconds]
    sweeps = [
        (name, sweep)
        for name in growth.SWEEPS
        if len(sweep := [row for row in timed if row.varied == name]) > 1
    ]
    if not sweeps:
        return
    figure = Figure(figsize=(3.6 * len(sweeps), 3.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for axes, (name, sweep) in zip(
        figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0], sweeps, strict=True
    ):
        values = [row.value for row in sweep]
        for what, marker in (("training", "o"), ("forward", "s")):
            for rival, colour in (("nn.LSTM", OTHER), ("ours", MET)):
                times = [row.milliseconds[what][rival] for row in sweep]
                axes.plot(values, times, color=colour, marker=marker, markersize=4, label=f"{rival}, {what}")
            as_arithmetic = [times[0] * row.arithmetic for row in sweep]
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
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=150)


def draw_rivals(rows: Sequence[everyone.Row], title: str, path: Path) -> None:
    """Draw everyone's time over ours, forward and training, a panel for each size."""
    sizes = list(dict.fromkeys(row.size for row in rows))
    names = list(dict.fromkeys(row.rival for row in rows))
    columns = min(len(sizes), 4)
    lines = -(-len(sizes) // columns)
    height = (0.3 * len(names) + 0.8) * lines
    figure = Figure(figsize=(2.8 * columns + 1.2, height + 0.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for axes in panels[len(sizes) :]:
        axes.set_visible(False)
    for axes, size in zip(panels, sizes, strict=False):
        for what, marker, colour, above in (("forward", "s", OTHER, 0.14), ("training", "o", MET, -0.14)):
            found = {row.rival: row.ratios[what] for row in rows if row.size == size and what in row.ratios}
            ratios = {names.index(name) - above: seen for name, seen in found.items()}
            draw_ratios(axes, ratios, marker, colour, what)
        label_ratios(axes, f"{size}: time ÷ ours", names)
    left = figure.axes[0]
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=150)


def draw_ratios(axes: Axes, ratios: Mapping[float, Ratio], marker: str, colour: str, label: str) -> None:
    """A mark at each ratio, by place, and its quartiles as a whisker."""
    for place, seen in ratios.items():
        axes.plot([seen.low, seen.high], [place, place], color="black", linewidth=1)
    axes.plot([seen.median for seen in ratios.values()], [*ratios], marker, color=colour, label=label)


def label_ratios(axes: Axes, title: str, names: Sequence[str]) -> None:
    """A logarithmic axis of ratios, a line for each name, and one at 1."""
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    plain(axes)
    axes.grid(axis="x", alpha=0.25)


def plain(axes: Axes) -> None:
    """No frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
