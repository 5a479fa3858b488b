"""Has it become slower? `make bench-save`, change something, `make bench-compare`: by pytest-benchmark.

A busy spell of the machine may last for minutes, and everything takes longer. So what is saved and compared
is no time but how many times as long as nn.LSTM ours takes, in turn with it; the least time of each counts.
"""

import time
from collections.abc import Iterator
from functools import partial
from math import inf

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.rivals import fused, make_problem, torch_lstm
from bench.sizes import SIZES, Setting
from bench.speed import STEPS

SETTING = Setting(torch.float32, threads=2, engine="cpp")
ROUNDS, SECONDS = 5, 2.0  # at least


class Clock:
    """It ticks once in the least time that nn.LSTM has taken in this test."""

    tick = inf

    @staticmethod
    def now() -> float:
        """Ticks since some time in the past."""
        return time.perf_counter() / Clock.tick


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many as the main table has."""
    before = torch.get_num_threads()
    torch.set_num_threads(SETTING.threads)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=Clock.now, disable_gc=True)
@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("size", SIZES)
def test_time(benchmark: BenchmarkFixture, size: str, what: str) -> None:
    """One size, without gradients or with; each is timed right after itself, as in `bench.timing.race`."""
    problem = make_problem(SIZES[size].case, SETTING)
    ours = partial(STEPS[what], fused(problem, SETTING.engine, peephole=True), problem)
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
