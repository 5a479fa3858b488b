"""Tables in Markdown, a line at a time, so that each row shows as soon as it is there."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import everyone, growth, memory, speed
from bench.check import WANTED
from bench.limits import Limits
from bench.timing import progress


class Table:
    """A table with columns of fixed width.

    Args:
        columns: heading and width of each.
    """

    def __init__(self, columns: Sequence[tuple[str, int]]) -> None:
        self.widths = [max(width, len(heading)) for heading, width in columns]
        self.row(heading for heading, _ in columns)
        print("|" + "|".join("-" * (width + 2) for width in self.widths) + "|", flush=True)

    def row(self, cells: Iterable[str]) -> None:
        """Print one row."""
        progress("")
        padded = [cell.ljust(width) for cell, width in zip(cells, self.widths, strict=True)]
        print("| " + " | ".join(padded) + " |", flush=True)


RACE_WIDTH = 35
SPEED = (
    ("size", 6),
    ("(T, B, I, H)", 20),
    ("error ÷ reference's", 0),
    ("forward ms", 0),
    ("× floor", 0),
    ("nn.LSTM ÷ ours, quartiles, bar", RACE_WIDTH),
    ("training ms", 0),
    ("× floor", 0),
    ("nn.LSTM ÷ ours, quartiles, bar", RACE_WIDTH),
    ("cell ÷ ours, quartiles, bar", RACE_WIDTH),
)
MEMORY = (
    ("size", 6),
    ("(T, B, I, H)", 20),
    ("kept for backward, bytes per (t, b, h)", 0),
    ("nn.LSTM", 0),
    ("cell", 7),
    ("peak of forward without gradients, MB", 0),
    ("nn.LSTM", 0),
    ("cell", 7),
)
GROWTH = (
    ("", 8),
    ("arithmetic grew ×", 0),
    ("forward ms", 0),
    ("grew ×", 18),
    ("nn.LSTM ms", 0),
    ("training ms", 0),
    ("grew ×", 18),
    ("nn.LSTM ms", 0),
)


RIVALS = (
    ("size", 6),
    ("(T, B, I, H)", 20),
    ("who", 13),
    ("error ÷ reference's", 0),
    ("forward ms", 0),
    ("÷ ours, quartiles", 18),
    ("training ms", 0),
    ("÷ ours, quartiles", 18),
)


def speed_cells(row: speed.Row) -> list[str]:
    """What the main table says of a size."""
    races = {(race.what, race.rival): race for race in row.races}
    error = row.errors.get("ours")
    judged = "" if error is None else f"{digits(error)} ≤ {WANTED} {verdict(WANTED / error)}"
    cells = [row.size, str(row.shape), judged]
    for what, rivals in (("forward", ["nn.LSTM"]), ("training", ["nn.LSTM", "cell"])):
        if what in row.milliseconds:
            ours, least = row.milliseconds[what]["ours"], row.floors[what]
            cells += [digits(ours), "?" if least is None else f"{ours / least:.2f}"]
        else:
            cells += ["not timed", ""]
        cells += [race_cell(races.get((what, rival))) for rival in rivals]
    return cells


def race_cell(race: speed.Race | None) -> str:
    """A ratio, its spread, the bar and the verdict."""
    if race is None:
        return ""
    median, low, high = (digits(value) for value in (race.ratio.median, race.ratio.low, race.ratio.high))
    return f"{median} ({low}–{high}) ≥ {race.bar:.3g} {verdict(race.ratio.median / race.bar)}"


def memory_cells(row: memory.Row) -> list[str]:
    """What the memory table says of a size."""
    cells = [row.size, str(row.shape)]
    for figures, share in ((row.kept, row.kept_share()), (row.peak, row.peak_share())):
        for name in ("ours", "nn.LSTM", "cell"):
            figure = figures.get(name)
            judged = f" {verdict(share)}" if name == "ours" and share is not None else ""
            cells.append("" if figure is None else digits(figure) + judged)
    return cells


def growth_cells(row: growth.Row) -> list[str]:
    """What the growth table says of one value."""
    cells = [row.size, digits(row.arithmetic)]
    for what in ("forward", "training"):
        if what in row.milliseconds:
            times = row.milliseconds[what]
            judged = f" {verdict(row.share(what))}" if row.shares() else ""
            grown = digits(row.grown[what]) + judged
            cells += [digits(times["ours"]), grown, digits(times["nn.LSTM"])]
        else:
            cells += ["not timed", "", ""]
    return cells


def rival_cells(row: everyone.Row) -> list[str]:
    """What the table of everyone says of one rival in one size."""
    cells = [row.size, str(row.shape), row.rival, "" if row.error is None else digits(row.error)]
    for what in ("forward", "training"):
        if what in row.milliseconds:
            found = row.ratios[what]
            spread = f"{digits(found.median)} ({digits(found.low)}–{digits(found.high)})"
            cells += [digits(row.milliseconds[what]), spread]
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

    columns: Sequence[tuple[str, int]]  # heading and width
    cells: Callable[[Any], list[str]]


KINDS = {
    "speed": Kind(SPEED, speed_cells),
    "deep": Kind(SPEED, speed_cells),
    "memory": Kind(MEMORY, memory_cells),
    "growth": Kind(GROWTH, growth_cells),
    "rivals": Kind(RIVALS, rival_cells),
}
