"""Tables in Markdown, a line at a time, so that each row shows as soon as it is there."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import everyone, growth, memory, speed
from bench.check import WANTED
from bench.limits import Limits
from bench.timing import Ratio, progress


class Column(NamedTuple):
    """One column of a table."""

    heading: str
    width: int = 0  # at least
    bar: bool = False  # what is asked, and whether it is met: of interest to those who work on it


class Table:
    """A table with columns of fixed width.

    Args:
        columns: those of the table.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.widths = [max(column.width, len(column.heading)) for column in columns]
        self.row(column.heading for column in columns)
        print("|" + "|".join("-" * (width + 2) for width in self.widths) + "|", flush=True)

    def row(self, cells: Iterable[str]) -> None:
        """Print one row."""
        progress("")
        padded = [cell.ljust(width) for cell, width in zip(cells, self.widths, strict=True)]
        print("| " + " | ".join(padded) + " |", flush=True)


SIZE = (Column("size", 6), Column("(T, B, I, H)", 20))
BAR = Column("bar", 18, bar=True)
SPEED = (
    *SIZE,
    Column("error ÷ reference's"),
    BAR,
    Column("forward ms"),
    Column("× floor"),
    Column("nn.LSTM ÷ ours", 18),
    BAR,
    Column("training ms"),
    Column("× floor"),
    Column("nn.LSTM ÷ ours", 18),
    BAR,
    Column("cell ÷ ours", 18),
    BAR,
)
MEMORY = (
    *SIZE,
    Column("kept for backward, bytes per (t, b, h)"),
    BAR,
    Column("nn.LSTM"),
    Column("cell", 7),
    Column("peak of forward without gradients, MB"),
    BAR,
    Column("nn.LSTM"),
    Column("cell", 7),
    Column("peak of a training step, MB"),
    Column("nn.LSTM"),
    Column("cell", 7),
)
GROWTH = (
    Column("", 8),
    Column("arithmetic grew ×"),
    Column("forward ms"),
    Column("grew ×"),
    BAR,
    Column("nn.LSTM ms"),
    Column("training ms"),
    Column("grew ×"),
    BAR,
    Column("nn.LSTM ms"),
)
RIVALS = (
    *SIZE,
    Column("who", 20),
    Column("error ÷ reference's"),
    Column("forward ms"),
    Column("÷ ours", 18),
    Column("training ms"),
    Column("÷ ours", 18),
)


def speed_cells(row: speed.Row) -> list[str]:
    """What the main table says of a size."""
    races = {(race.what, race.rival): race for race in row.races}
    cells = [row.size, str(row.shape), "", ""]
    if "ours" in row.errors:
        error = row.errors["ours"]
        cells[2:] = [digits(error), f"≤ {WANTED} {verdict(WANTED / error)}"]
    for what, rivals in (("forward", ["nn.LSTM"]), ("training", ["nn.LSTM", "cell"])):
        if what in row.milliseconds:
            ours, least = row.milliseconds[what]["ours"], row.floors[what]
            cells += [digits(ours), "?" if least is None else f"{ours / least:.2f}"]
        else:
            cells += ["not timed", ""]
        for race in (races.get((what, rival)) for rival in rivals):
            judged = race and f"≥ {race.bar:.3g} {verdict(race.ratio.median / race.bar)}"
            cells += [spread(race.ratio), judged] if race and judged else ["", ""]
    return cells


def spread(ratio: Ratio) -> str:
    """A ratio and its quartiles."""
    return f"{digits(ratio.median)} ({digits(ratio.low)}–{digits(ratio.high)})"


def memory_cells(row: memory.Row) -> list[str]:
    """What the memory table says of a size."""
    cells = [row.size, str(row.shape)]
    kept, forward, training = (
        [digits(figure) if (figure := figures.get(name)) else "" for name in ("ours", "nn.LSTM", "cell")]
        for figures in (row.kept, row.peak.get("forward", {}), row.peak.get("training", {}))
    )
    for figures, share in ((kept, row.kept_share()), (forward, row.peak_share())):
        cells += [figures[0], "" if share is None else verdict(share), *figures[1:]]
    return cells + training


def growth_cells(row: growth.Row) -> list[str]:
    """What the growth table says of one value."""
    cells = [row.size, digits(row.arithmetic)]
    for what in ("forward", "training"):
        if what in row.milliseconds:
            times = row.milliseconds[what]
            judged = verdict(row.share(what)) if row.shares() else ""
            cells += [digits(times["ours"]), digits(row.grown[what]), judged, digits(times["nn.LSTM"])]
        else:
            cells += ["not timed", "", "", ""]
    return cells


def rival_cells(row: everyone.Row) -> list[str]:
    """What the table of everyone says of one rival in one size."""
    cells = [row.size, str(row.shape), row.rival, "" if row.error is None else digits(row.error)]
    for what in ("forward", "training"):
        if what in row.milliseconds:
            cells += [digits(row.milliseconds[what]), "" if row.is_ours else spread(row.ratios[what])]
        else:
            cells += ["", ""]
    return cells


def limits_line(limits: Limits) -> str:
    """What the machine was seen to do."""
    products = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in limits.products.items())
    line = f"GFLOP/s of large products: {products}; copying {limits.bandwidth / 1e9:.1f} GB/s; "
    if limits.fma is None or limits.cell_forward is None or limits.cell_backward is None:
        return line + "no C++ compiler, so neither the peak nor the cell was measured and no floor is known"
    cell = f"{limits.cell_forward / 1e9:.2f} and back {limits.cell_backward / 1e9:.2f}"
    return line + f"multiply-adds {limits.fma / 1e9:.0f} GFLOP/s; elementwise cell {cell} Gchannels/s"


def verdict(share: float) -> str:
    """Whether what was reached is all that was asked, or the factor that is missing."""
    return "met" if share >= 1 else f"short {digits(1 / share)}×"


def digits(value: float) -> str:
    """Three significant digits, or all of a larger whole number."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


@dataclass(frozen=True)
class Kind:
    """One kind of table."""

    columns: Sequence[Column]
    cells: Callable[[Any], list[str]]

    def markdown(self, rows: Iterable[Any]) -> str:
        """The table without the bars."""
        shown = [column for column in self.columns if not column.bar]
        lines = [[column.heading for column in shown], ["---"] * len(shown)]
        for row in rows:
            pairs = zip(self.cells(row), self.columns, strict=True)
            lines.append([cell for cell, column in pairs if not column.bar])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


KINDS = {
    "speed": Kind(SPEED, speed_cells),
    "deep": Kind(SPEED, speed_cells),
    "memory": Kind(MEMORY, memory_cells),
    "growth": Kind(GROWTH, growth_cells),
    "rivals": Kind(RIVALS, rival_cells),
    "lengths": Kind(RIVALS, rival_cells),
}
