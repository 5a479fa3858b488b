"""How pytest-benchmark tells what `bench.regressions` measures."""

from collections.abc import Generator

import pytest
from pytest_benchmark.session import PerformanceRegression


def pytest_benchmark_scale_unit(unit: str) -> tuple[str, float]:
    """The unit of a column, before an "s", and what to multiply by."""
    return ("× nn.LSTM'" if unit == "seconds" else "", 1.0)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary() -> Generator[None]:
    """End with what is the matter, not with a traceback."""
    try:
        yield
    except PerformanceRegression:
        pytest.exit("slower than what bench-save has saved, where it says so above", returncode=1)
