"""How the time grows with T, B and H, beside how the arithmetic grows."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from bench.check import Refused, check
from bench.limits import arithmetic
from bench.rivals import RIVALS, make_problem
from bench.sizes import Setting
from bench.speed import STEPS
from bench.timing import Pace, progress, race
from tests.cases import Case

BASE = Case("base", T=64, B=32, I=256, H=256)
SWEEPS = {"T": (16, 32, 64, 128, 256, 512), "B": (1, 4, 16, 64, 256), "H": (64, 128, 256, 512, 1024)}
ALLOWED = 1.1  # times the arithmetic's growth: what two timings may differ by


@dataclass
class Row:
    """One value of one size; growth is against the first value of that size."""

    varied: str  # "T", "B" or "H"
    value: int
    arithmetic: float  # times the first value's
    refused: dict[str, Refused] = field(default_factory=dict)  # why a rival was not timed
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # medians by what and rival
    grown: dict[str, float] = field(default_factory=dict)  # our time over the first value's, by what

    @property
    def size(self) -> str:
        """What the row is of."""
        return f"{self.varied} = {self.value}"

    def share(self, what: str) -> float:
        """How far the time's growth stays below what is allowed; 1 and more is enough."""
        return ALLOWED * self.arithmetic / self.grown[what]

    def shares(self) -> list[float]:
        """What was reached over what was asked; 1 and more is enough."""
        return [] if self.arithmetic == 1 else [self.share(what) for what in self.grown]


def sweep(varied: str, values: Sequence[int], setting: Setting, pace: Pace) -> Iterator[Row]:
    """Time ours and nn.LSTM at several values of one size."""
    first: Row | None = None
    least = arithmetic(changed(varied, values[0]), setting, "forward")
    for value in values:
        case = changed(varied, value)
        row = Row(varied, value, arithmetic(case, setting, "forward") / least)
        problem = make_problem(case, setting)
        modules = {}
        for rival in RIVALS[:2]:
            progress(f"{case.name}: checking {rival.name}")
            try:
                check(rival, case, setting)
            except Refused as refusal:
                row.refused[rival.name] = refusal
            else:
                modules[rival.name] = rival.make(problem)
        if row.refused:
            yield row
            continue
        first = first or row
        for what, step in STEPS.items():
            progress(f"{case.name}: {what}")
            seconds = race({name: partial(step, module, problem) for name, module in modules.items()}, pace)
            medians = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
            row.milliseconds[what] = medians
            row.grown[what] = medians["ours"] / first.milliseconds[what]["ours"]
        yield row


def changed(varied: str, value: int) -> Case:
    """The base case with one size changed."""
    sizes = {"T": BASE.T, "B": BASE.B, "H": BASE.H} | {varied: value}
    return Case(f"{varied} = {value}", sizes["T"], sizes["B"], BASE.I, sizes["H"])
