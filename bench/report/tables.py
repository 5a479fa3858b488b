"""Tables in Markdown, made from records."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from bench.race import Ratio, Record, Target, progress

Row = Sequence[Record]  # the records that one row of a table shows


class Column(NamedTuple):
    """One column of a table."""

    heading: str
    cell: Callable[[Row], str]
    width: int = 0  # in a terminal, at least


class Kind(NamedTuple):
    """One kind of table: records with the same ``by`` make a row."""

    by: Callable[[Record], object]
    columns: Sequence[Column]

    def rows(self, records: Iterable[Record]) -> list[list[str]]:
        """The cells of each row."""
        grouped = (list(row) for _, row in groupby(records, self.by))
        return [[column.cell(row) for column in self.columns] for row in grouped]

    def markdown(self, records: Iterable[Record]) -> str:
        """The table as a page shows it."""
        return markdown([column.heading for column in self.columns], self.rows(records))

    def print(self, records: Iterable[Record] | None = None) -> None:
        """Print the rows of some records, or the heading: as soon as they are there."""
        progress("")
        widths = [max(column.width, len(column.heading)) for column in self.columns]
        headings = [column.heading for column in self.columns]
        for cells in [headings] if records is None else self.rows(records):
            print("| " + " | ".join(map(str.ljust, cells, widths)) + " |", flush=True)
        if records is None:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))


def digits(value: float) -> str:
    """Three significant digits, or all of a larger whole number."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def spread(ratio: Ratio) -> str:
    """A ratio and its quartiles."""
    return f"{digits(ratio.median)} ({digits(ratio.low)}–{digits(ratio.high)})"


def verdict(target: Target) -> str:
    """A target, and whether it is met or by which factor it is missed."""
    met = "met" if target.share >= 1 else f"missed by {digits(1 / target.share)}×"
    return f"{'≤' if target.at_most else '≥'} {digits(target.limit)} {met}"


def find(row: Row, what: str, who: str | None) -> Record | None:
    """The record of a step and a contestant; of the row's only one, without a name."""
    found = (record for record in row if record.what == what and who in (None, record.who))
    return next(found, None)


def number(
    heading: str, name: str, what: str, who: str | None = None, instead: str = "", width: int = 0
) -> Column:
    """A column of one field of a record."""

    def cell(row: Row) -> str:
        value = getattr(record, name) if (record := find(row, what, who)) else None
        return instead if value is None else digits(value)

    return Column(heading, cell, width)


def ratios(heading: str, what: str, who: str | None = None) -> Column:
    """A column of times over ours."""

    def cell(row: Row) -> str:
        record = find(row, what, who)
        return spread(record.ratio) if record and record.ratio and record.who != "ours" else ""

    return Column(heading, cell, 18)


def target(name: str, what: str, who: str, width: int = 22) -> Column:
    """A column of a field's target."""

    def cell(row: Row) -> str:
        record = find(row, what, who)
        return verdict(record.targets[name]) if record and name in record.targets else ""

    return Column("target", cell, width)


def error(who: str | None = None) -> Column:
    """A column of errors."""

    def cell(row: Row) -> str:
        found = (record.error for record in row if who in (None, record.who) and record.error is not None)
        return next(map(digits, found), "")

    return Column("error ÷ reference's error", cell)


def times(what: str, others: Sequence[str]) -> list[Column]:
    """Our time, its multiple of the floor, and others' times over it with their targets."""

    def above(row: Row) -> str:
        record = find(row, what, "ours")
        if record is None or record.milliseconds is None:
            return ""
        return f"{record.milliseconds / record.floor:.2f}" if record.floor else "?"

    columns = [number(f"{what} ms", "milliseconds", what, "ours", "not timed"), Column("× floor", above)]
    for who in others:
        columns += [ratios(f"{who} ÷ ours", what, who), target("ratio", what, who)]
    return columns


def growth(what: str) -> list[Column]:
    """Our time and its growth, and nn.LSTM's time."""
    return [
        number(f"{what} ms", "milliseconds", what, "ours", "not timed"),
        number("growth", "growth", what, "ours"),
        target("growth", what, "ours"),
        number("nn.LSTM ms", "milliseconds", what, "nn.LSTM"),
    ]


def memory(heading: str, name: str, what: str, *targets: Column) -> list[Column]:
    """Ours, its target, nn.LSTM's and the cell's."""
    others = [number(who, name, what, who, width=7) for who in ("nn.LSTM", "cell")]
    return [number(heading, name, what, "ours"), *targets, *others]


SHAPE = Column("(T, B, I, H)", lambda row: str(row[0].shape), 20)
SIZE = (Column("size", lambda row: row[0].size, 6), SHAPE)
SPEED = Kind(
    lambda record: record.size,
    (
        *SIZE,
        *(error("ours"), target("error", "forward", "ours")),
        *times("forward", ["nn.LSTM"]),
        *times("training", ["nn.LSTM", "cell"]),
    ),
)
MEMORY = Kind(
    lambda record: record.size,
    (
        *SIZE,
        *memory(
            "kept for backward, bytes per (t, b, h)", "kept", "training", target("kept", "training", "ours")
        ),
        *memory(
            "peak of forward without gradients, MB", "peak", "forward", target("peak", "forward", "ours")
        ),
        *memory("peak of a training step, MB", "peak", "training"),
    ),
)
GROWTH = Kind(
    lambda record: record.size,
    (
        Column("", lambda row: row[0].size, 8),
        Column("growth of the arithmetic", lambda row: digits(row[0].arithmetic or 0)),
        *growth("forward"),
        *growth("training"),
    ),
)
RIVALS = Kind(
    lambda record: (record.size, record.who),
    (
        *SIZE,
        Column("contestant", lambda row: row[0].who, 20),
        error(),
        number("forward ms", "milliseconds", "forward"),
        ratios("÷ ours", "forward"),
        number("training ms", "milliseconds", "training"),
        ratios("÷ ours", "training"),
    ),
)
KINDS = {
    "speed": SPEED,
    "deep": SPEED,
    "memory": MEMORY,
    "growth": GROWTH,
    "rivals": RIVALS,
    "lengths": RIVALS,
}
