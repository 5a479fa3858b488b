"""The kinds of measurement: each yields the records of one table, size by size."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.cases import Setting, arithmetic
from bench.check import WANTED
from bench.host.limits import Limits, floor
from bench.peers.libraries import LIBRARIES
from bench.peers.modules import BASICS, LOOPS, OURS, TORCH, WITH_LENGTHS, Module
from bench.race import Contestant, Pace, Record, Target, measure
from tests.cases import Case

EVERYONE: Sequence[Contestant] = (*LOOPS, *LIBRARIES)
SWEEPS = {"T": (16, 32, 64, 128, 256, 512), "B": (1, 4, 16, 64, 256), "H": (64, 128, 256, 512, 1024)}
GROWTH = 1.1  # times the arithmetic's growth, at most: two timings may differ by this


def measure_speed(
    case: Case,
    setting: Setting,
    wanted: dict[tuple[str, str], float],
    limits: Limits | None,
    pace: Pace,
    modules: Sequence[Module] = BASICS,
) -> list[Record]:
    """Race ours with those that there is a target for, by step and name; ours is the first of ``modules``."""
    ours, *others = modules
    raced = [replace(m, can=tuple(what for what in m.can if (what, m.name) in wanted)) for m in others]
    records = measure(case, setting, [ours, *(module for module in raced if module.can)], pace)
    for record in records:
        least = floor(case, setting, record.what, limits) if limits else None
        if record.who == ours.name:
            record.floor = least and 1e3 * least
            if record.error is not None and record.what == "forward":
                record.targets["error"] = Target(record.error, WANTED, at_most=True)
        elif record.ratio is not None:
            record.targets["ratio"] = Target(record.ratio.median, wanted[record.what, record.who])
    return records


def measure_growth(
    varied: str, values: Sequence[int], setting: Setting, pace: Pace
) -> Iterator[list[Record]]:
    """Race ours with nn.LSTM at several values of T, B or H; growth is against the first value."""
    first: dict[str, float] = {}
    base = {"T": 64, "B": 32, "H": 256}
    sizes = [base | {varied: value} for value in values]
    cases = [Case(f"{varied} = {s[varied]}", T=s["T"], B=s["B"], I=256, H=s["H"]) for s in sizes]
    work = [arithmetic(case, setting, "forward") for case in cases]
    for case, flop in zip(cases, work, strict=True):
        records = measure(case, setting, (OURS, TORCH), pace)
        for record in records:
            record.arithmetic = flop / work[0]
            if record.who == OURS.name and record.milliseconds is not None:
                record.growth = record.milliseconds / first.setdefault(record.what, record.milliseconds)
                if case != cases[0]:
                    record.targets["growth"] = Target(record.growth, GROWTH * record.arithmetic, at_most=True)
        yield records


def measure_rivals(case: Case, setting: Setting, pace: Pace) -> list[Record]:
    """Race everyone."""
    return measure(case, setting, EVERYONE, pace)


def measure_lengths(case: Case, setting: Setting, pace: Pace) -> list[Record]:
    """Race sequences of unequal length with the same sequences as whole ones."""
    return measure(case, setting, WITH_LENGTHS, pace)
