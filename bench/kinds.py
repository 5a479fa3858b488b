"""The kinds of measurement: each yields the records of one table, size by size."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from bench.cases import Setting, arithmetic
from bench.check import WANTED
from bench.host.limits import Limits, floor
from bench.peers.cells import CELLS
from bench.peers.libraries import LIBRARIES
from bench.peers.modules import BASICS, CELL, LAYERS, LOOPS, OURS, TORCH, WITH_LENGTHS, Module
from bench.race import Contestant, Pace, Record, Target, measure
from tests.cases import Case

EVERYONE: Sequence[Contestant] = (*LOOPS, *LIBRARIES)
SWEEPS = {"T": (16, 32, 64, 128, 256, 512), "B": (1, 4, 16, 64, 256), "H": (64, 128, 256, 512, 1024)}
GROWTH = 1.1  # times the arithmetic's growth, at most: two timings may differ by this


def measure_speed(
    case: Case, setting: Setting, limits: Limits | None, pace: Pace, modules: Sequence[Module] = BASICS
) -> list[Record]:
    """Race ours, the first of ``modules``, with the others; the cell trains one layer in float32 alone."""
    one_layer = setting.layers == 1 and setting.dtype == torch.float32
    raced = [
        replace(m, can=("training",) if one_layer else ()) if m.name == CELL.name else m for m in modules
    ]
    records = judged(measure(case, setting, [module for module in raced if module.can], pace))
    for record in records:
        least = floor(case, setting, record.what, limits) if limits else None
        if record.who == OURS.name and record.milliseconds is not None and least is not None:
            record.times_floor = record.milliseconds / (1e3 * least)
    return records


def judged(records: list[Record]) -> list[Record]:
    """The records, with a target for our error; not in float64, where the truth is rounded as much."""
    for record in records:
        if record.dtype == "float64" or (record.who, record.what) != (OURS.name, "forward"):
            continue
        if record.error is not None:
            record.targets["error"] = Target(record.error, WANTED, at_most=True)
    return records


def measure_small(case: Case, setting: Setting, pace: Pace) -> list[Record]:
    """Race one step of a layer or of a cell with that of torch.nn."""
    return judged(measure(case, setting, CELLS if case.name == "LSTMCell" else LAYERS, pace))


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
