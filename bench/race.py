"""The one loop of the benchmark: check contestants, time them in turn, record medians and ratios."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from bench.cases import Setting
from bench.check import Refused, Wrong
from bench.problem import STEPS, Problem, make_problem
from lstm_fused.backends.table import short
from tests.cases import Case

Call = Callable[[], object]


class Pace(NamedTuple):
    """How long to race: until both are reached."""

    rounds: int  # at least 2
    seconds: float


@dataclass(frozen=True)
class Ratio:
    """The median and the quartiles of another's time over ours, each of one round."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Target:
    """A value that was reached, and its limit."""

    reached: float
    limit: float
    at_most: bool = False

    @property
    def share(self) -> float:
        """1 and more is enough."""
        return self.limit / self.reached if self.at_most else self.reached / self.limit


@dataclass
class Record:
    """One step of one contestant at one size; a field is empty if it was not measured."""

    size: str
    shape: tuple[int, ...]  # T, B, I, H; of a mean, empty
    dtype: str
    what: str  # "forward" (no gradients) or "training" (forward and backward)
    who: str
    refused: str | None = None  # the reason why it was not timed
    wrong: bool = False  # refused because of a wrong result
    error: float | None = None  # in units of the reference's own error
    milliseconds: float | None = None  # median
    gpu_milliseconds: float | None = None  # median of the GPU's own time; see `bench.gpu.kernels.Queued`
    rounds: int = 0
    ratio: Ratio | None = None  # its time over ours
    times_floor: float | None = None  # its time over that of bench.host.limits.floor
    arithmetic: float | None = None  # times that of the first value of a sweep
    growth: float | None = None  # time, likewise
    kept: float | None = None  # bytes kept for backward per (t, b, h)
    peak: float | None = None  # MB in use at the peak
    targets: dict[str, Target] = field(default_factory=dict)  # by field


class Contestant(Protocol):
    """One way to compute an LSTM."""

    @property
    def name(self) -> str:
        """Unique among contestants."""

    @property
    def can(self) -> Sequence[str]:
        """The steps it takes part in: "forward", "training"."""

    def enter(self, problem: Problem, stack: ExitStack) -> tuple[float | None, Mapping[str, Call]]:
        """Check it: the error, and the call to time for each step. ``stack`` closes what it opened.

        Raises:
            Refused: it cannot take part, or its result is wrong.
        """


def measure(
    case: Case,
    setting: Setting,
    contestants: Sequence[Contestant],
    pace: Pace,
    ours: str = "ours",
    without_ours: bool = False,
) -> list[Record]:
    """Check every contestant at one size, then race those that are right, one step after the other.

    Args:
        case: the size.
        setting: dtype, threads, layers.
        contestants: those that take part.
        pace: when to stop.
        ours: the contestant that ratios refer to.
        without_ours: whether the others are timed if ours is refused.
    """
    problem = make_problem(case, setting)
    records = {
        (what, contestant.name): empty(case, setting, what, contestant.name)
        for contestant in contestants
        for what in contestant.can
    }
    calls: dict[str, dict[str, Call]] = {what: {} for what in STEPS}
    with ExitStack() as stack:
        for contestant in contestants:
            progress(f"{case.name}: checking {contestant.name}")
            mine = [record for record in records.values() if record.who == contestant.name]
            try:
                error, entered = contestant.enter(problem, stack)
            except Refused as refusal:
                for record in mine:
                    record.refused, record.wrong = str(refusal), isinstance(refusal, Wrong)
            else:
                for record in mine:
                    record.error, calls[record.what][record.who] = error, entered[record.what]
        for what, taking_part in calls.items():
            if ours not in taking_part and not without_ours:
                continue
            progress(f"{case.name}: {what}, {', '.join(taking_part)} in turn")
            seconds = race(taking_part, pace)
            for name, times in seconds.items():
                record = records[what, name]
                record.milliseconds, record.rounds = 1e3 * statistics.median(times), len(times)
                if ours in seconds:
                    record.ratio = ratio(times, seconds[ours])
    return list(records.values())


def empty(case: Case, setting: Setting, what: str, who: str) -> Record:
    """A record with nothing measured."""
    return Record(case.name, (case.T, case.B, case.I, case.H), short(setting.dtype), what, who)


def race(calls: Mapping[str, Call], pace: Pace) -> dict[str, list[float]]:
    """Time calls in turn, A, B, C, A, B, C, so that a busy spell of the machine meets all of them alike.

    Each is called twice in its turn and timed the second time, as in a training loop it follows itself: the
    first call finds the caches and the allocator as another contestant left them.

    Args:
        calls: what to time. One that returns a float has timed itself.
        pace: when to stop.

    Returns:
        The seconds of each, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()  # reference cycles of one are not collected in the time of another
    try:
        begin = time.perf_counter()
        rounds = 0
        while calls and (rounds < pace.rounds or time.perf_counter() - begin < pace.seconds):
            for name, call in calls.items():
                call()
                start = time.perf_counter()
                took = call()
                end = time.perf_counter()
                seconds[name].append(took if isinstance(took, float) else end - start)
            rounds += 1
    finally:
        gc.enable()
    return seconds


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """The median and the quartiles of theirs over ours, from the times of the same rounds."""
    rounds = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(median, low, high)


def progress(text: str) -> None:
    """Show on one line of a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def write_json(path: Path, **content: object) -> None:
    """Write records, settings and machines, with dtypes by their short names."""

    def text(value: object) -> object:
        return short(value) if isinstance(value, torch.dtype) else asdict(value)  # type: ignore[call-overload]

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=text) + "\n")
