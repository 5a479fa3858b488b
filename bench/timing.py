"""Races, and what they say."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Ratio:
    """Another's time over ours."""

    median: float  # of the medians
    low: float  # quartiles of the ratios within each round
    high: float


class Pace(NamedTuple):
    """How long to race: until both are reached."""

    rounds: int  # at least 2
    seconds: float


def race(calls: Mapping[str, Callable[[], object]], pace: Pace) -> dict[str, list[float]]:
    """Time calls in turn, A, B, C, A, B, C, so that a busy spell of the machine meets all of them alike.

    Each is called twice in its turn and timed the second time, as in a training loop it follows itself: the
    first call finds the caches and the allocator as another left them.

    Args:
        calls: what to time. One that returns a float has timed itself.
        pace: when to stop.

    Returns:
        The seconds of each, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()  # the cycles one of them leaves are not to be cleared in another's time
    try:
        begin = time.perf_counter()
        rounds = 0
        while rounds < pace.rounds or time.perf_counter() - begin < pace.seconds:
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
    """How many times longer theirs took, from the times of the same rounds."""
    rounds = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(statistics.median(theirs) / statistics.median(ours), low, high)


def progress(text: str) -> None:
    """Say what is being done, in a terminal only, in place of what was said before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
