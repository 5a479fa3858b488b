"""The main table: how long each size takes, against the floor and against the others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from bench.check import WANTED, Refused, check
from bench.limits import Limits, floor
from bench.rivals import RIVALS, Rival, forward, make_problem, training
from bench.sizes import Setting, Size, bars
from bench.timing import Pace, Ratio, progress, race, ratio

STEPS = {"forward": forward, "training": training}


@dataclass(frozen=True)
class Race:
    """One ratio, and what it should be."""

    what: str  # "forward" or "training"
    rival: str
    ratio: Ratio
    bar: float

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.ratio.median >= self.bar


@dataclass
class Row:
    """What was found for one size."""

    size: str
    shape: tuple[int, int, int, int]  # T, B, I, H
    refused: dict[str, Refused] = field(default_factory=dict)  # why a rival was not timed
    errors: dict[str, float] = field(default_factory=dict)  # in units of the reference's own
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # medians by what and rival
    rounds: dict[str, int] = field(default_factory=dict)
    floors: dict[str, float | None] = field(default_factory=dict)  # in milliseconds
    races: list[Race] = field(default_factory=list)

    def shares(self) -> list[float]:
        """What was reached over what was asked; 1 and more is enough."""
        errors = [WANTED / self.errors["ours"]] if "ours" in self.errors else []
        return errors + [race.ratio.median / race.bar for race in self.races]


def measure(
    size: Size,
    setting: Setting,
    limits: Limits | None,
    pace: Pace,
    rivals: Sequence[Rival] = RIVALS,
) -> Row:
    """Check everyone who takes part in one size, then race them: ours is the first of ``rivals``."""
    case = size.case
    row = Row(case.name, (case.T, case.B, case.I, case.H))
    wanted = bars(size, setting)
    modules = {}
    problem = make_problem(case, setting)
    for rival in rivals:
        if rival is not rivals[0] and all(name != rival.name for _, name in wanted):
            continue
        progress(f"{case.name}: checking {rival.name}")
        try:
            row.errors[rival.name] = check(rival, case, setting)
        except Refused as refusal:
            row.refused[rival.name] = refusal
        else:
            modules[rival.name] = rival.make(problem)
    ours = rivals[0].name
    if ours not in modules:
        return row

    for what, step in STEPS.items():
        others = [name for kind, name in wanted if kind == what and name in modules]
        progress(f"{case.name}: {what}, {' and '.join([ours, *others])} in turn")
        seconds = race({name: partial(step, modules[name], problem) for name in (ours, *others)}, pace)
        row.milliseconds[what] = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
        row.rounds[what] = len(seconds[ours])
        least = None if limits is None else floor(case, setting, what, limits)
        row.floors[what] = None if least is None else 1e3 * least
        row.races += [
            Race(what, name, ratio(seconds[name], seconds[ours]), wanted[what, name]) for name in others
        ]
    return row
