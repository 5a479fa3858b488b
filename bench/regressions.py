"""Finds what has become slower, by pytest-benchmark: `make bench-save`, a change, `make bench-compare`.

A busy machine slows everything down for minutes. So the saved and compared quantity is our least time over
nn.LSTM's, timed in turn.
"""

import time
from collections.abc import Iterator
from functools import partial
from math import inf

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import SIZES, Setting
from bench.peers.modules import fused, torch_lstm
from bench.problem import STEPS, make_problem

SETTING = Setting(torch.float32, threads=2, engine="cpp")
ROUNDS, SECONDS = 5, 2.0  # at least


class Clock:
    """A clock whose tick is the least time that nn.LSTM has taken in this test."""

    tick = inf

    @staticmethod
    def now() -> float:
        """Ticks since some time in the past."""
        return time.perf_counter() / Clock.tick


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Use as many threads as the main table."""
    before = torch.get_num_threads()
    torch.set_num_threads(SETTING.threads)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=Clock.now, disable_gc=True)
@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("size", SIZES)
def test_time(benchmark: BenchmarkFixture, size: str, what: str) -> None:
    """One size and step; each call is timed right after another of its own, as in `bench.race.race`."""
    problem = make_problem(SIZES[size], SETTING)
    ours = partial(STEPS[what], fused(problem, SETTING.engine), problem)
    theirs = partial(STEPS[what], torch_lstm(problem), problem)

    def set_clock() -> None:
        theirs()
        start = time.perf_counter()
        theirs()
        Clock.tick = min(Clock.tick, time.perf_counter() - start)
        ours()

    Clock.tick = inf
    set_clock()
    set_clock()
    benchmark.pedantic(ours, setup=set_clock, rounds=max(ROUNDS, int(SECONDS / (4 * Clock.tick))))
