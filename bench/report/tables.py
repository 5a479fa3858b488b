"""Tables in Markdown, made from records."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from bench.problem import STEPS
from bench.race import Ratio, Record, Target, progress

Row = Sequence[Record]  # the records that one row of a table shows
Show = Callable[[Record], str]


class Column(NamedTuple):
    """One column of a table: shows one record of a row, that of its step and contestant if they are named."""

    heading: str
    show: Show
    width: int = 0  # in a terminal, at least
    what: str | None = None
    who: str | None = None

    def cell(self, row: Row) -> str:
        """Its text in a row."""
        found = (r for r in row if self.what in (None, r.what) and self.who in (None, r.who))
        return next(map(self.show, found), "")


class Kind(NamedTuple):
    """One kind of table: records with the same ``by`` make a row."""

    by: Callable[[Record], object]
    columns: Sequence[Column]

    def rows(self, records: Iterable[Record]) -> list[list[str]]:
        """The cells of each row."""
        grouped = [list(row) for _, row in groupby(records, self.by)]
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


def digits(value: float | None) -> str:
    """Three significant digits, or all of a larger whole number; nothing of nothing."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def spread(ratio: Ratio | None) -> str:
    """A ratio and its quartiles."""
    return f"{digits(ratio.median)} ({digits(ratio.low)}–{digits(ratio.high)})" if ratio else ""


def verdict(target: Target | None) -> str:
    """A target, and whether it is met or by which factor it is missed."""
    if target is None:
        return ""
    met = "met" if target.share >= 1 else f"missed by {digits(1 / target.share)}×"
    return f"{'≤' if target.at_most else '≥'} {digits(target.limit)} {met}"


def time(record: Record) -> str:
    """The median in milliseconds."""
    return "not timed" if record.refused else digits(record.milliseconds)


def microseconds(record: Record) -> str:
    """The median in microseconds."""
    return "not timed" if record.refused else digits(record.milliseconds and 1e3 * record.milliseconds)


def floors(record: Record) -> str:
    """The time as a multiple of the floor."""
    return digits(record.times_floor)


def target(name: str, what: str, who: str | None = "ours") -> Column:
    """The column of a field's target."""
    return Column("target", lambda record: verdict(record.targets.get(name)), 22, what, who)


def ratios(who: str, what: str) -> Column:
    """The column of a contestant's time over ours."""
    return Column(f"{who} ÷ ours", lambda record: spread(record.ratio), 18, what, who)


def speed(what: str, *others: str) -> list[Column]:
    """Our time over the floor, and nn.LSTM's over ours, with their targets; others' over ours."""
    ours = [Column(f"{what} ms", time, 0, what, "ours"), Column("× floor", floors, 0, what, "ours")]
    theirs = [ratios("nn.LSTM", what), target("ratio", what, "nn.LSTM")]
    return [*ours, target("times_floor", what), *theirs, *(ratios(who, what) for who in others)]


def small(what: str) -> list[Column]:
    """Our time, and that of torch.nn over it with its target."""
    ours = Column(f"{what} µs", microseconds, 0, what, "ours")
    return [ours, ratios("torch.nn", what), target("ratio", what, "torch.nn")]


def growth(what: str) -> list[Column]:
    """Our time and its growth, and nn.LSTM's time."""
    return [
        Column(f"{what} ms", time, 0, what, "ours"),
        *(Column("growth", lambda record: digits(record.growth), 0, what, "ours"), target("growth", what)),
        Column("nn.LSTM ms", time, 0, what, "nn.LSTM"),
    ]


def memory(heading: str, show: Show, what: str, *targets: Column) -> list[Column]:
    """Ours, its target, nn.LSTM's and the cell's."""
    others = [Column(who, show, 7, what, who) for who in ("nn.LSTM", "cell")]
    return [Column(heading, show, 0, what, "ours"), *targets, *others]


def kept(record: Record) -> str:
    """Bytes kept for backward."""
    return digits(record.kept)


def peak(record: Record) -> str:
    """MB in use at the peak."""
    return digits(record.peak)


SHAPE = Column("(T, B, I, H)", lambda record: str(record.shape or "geometric"), 20)
SIZE = (Column("size", lambda record: record.size, 6), SHAPE)
ERROR = Column("error ÷ reference's error", lambda record: digits(record.error))
SPEED = Kind(
    lambda record: record.size,
    (
        *SIZE,
        ERROR,
        target("error", "forward"),
        *speed("forward"),
        *speed("training", "cell"),
    ),
)
SMALL = Kind(
    lambda record: (record.size, record.shape),
    (
        *(Column("module", lambda record: record.size, 8), SHAPE, ERROR, target("error", "forward")),
        *(*small("forward"), *small("training")),
    ),
)
MEMORY = Kind(
    lambda record: record.size,
    (
        *SIZE,
        *memory("kept for backward, bytes per (t, b, h)", kept, "training", target("kept", "training")),
        *memory("peak of forward without gradients, MB", peak, "forward", target("peak", "forward")),
        *memory("peak of a training step, MB", peak, "training"),
    ),
)
GROWTH = Kind(
    lambda record: record.size,
    (
        Column("", lambda record: record.size, 8),
        Column("growth of the arithmetic", lambda record: digits(record.arithmetic)),
        *growth("forward"),
        *growth("training"),
    ),
)


def beside_ours(record: Record) -> str:
    """The time over ours; of ours, nothing."""
    return "" if record.who == "ours" else spread(record.ratio)


def beside(what: str) -> list[Column]:
    """A contestant's time, and the time over ours."""
    return [Column(f"{what} ms", time, 0, what), Column("÷ ours", beside_ours, 18, what)]


def rivals(*steps: Sequence[Column]) -> Kind:
    """A row for each contestant."""
    contestant = Column("contestant", lambda record: record.who, 20)
    return Kind(
        lambda record: (record.size, record.who),
        (*SIZE, contestant, ERROR, *(column for step in steps for column in step)),
    )


KINDS = {
    "speed": SPEED,
    "deep": SPEED,
    "memory": MEMORY,
    "growth": GROWTH,
    "rivals": rivals(*([*beside(what), target("ratio", what, None)] for what in STEPS)),
    "lengths": rivals(*map(beside, STEPS)),
    "small": SMALL,
}
