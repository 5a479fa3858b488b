"""Has it become slower? `make bench-save`, change something, `make bench-compare`: by pytest-benchmark."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.rivals import fused, make_problem
from bench.sizes import SIZES, Setting
from bench.speed import STEPS

SETTING = Setting(torch.float32, threads=2, engine="cpp")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many as the main table has."""
    before = torch.get_num_threads()
    torch.set_num_threads(SETTING.threads)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("size", SIZES)
def test_time(benchmark: BenchmarkFixture, size: str, what: str) -> None:
    """One size, without gradients or with."""
    problem = make_problem(SIZES[size].case, SETTING)
    module = fused(problem, SETTING.engine, peephole=True)
    benchmark(partial(STEPS[what], module, problem))
