"""Options of the whole suite; fast tests first: a module named here runs after all others, in this order."""

import os

import pytest
import torch

SLOW = (
    "test_compile",
    "test_distributed",
    "test_interpreted",
    "test_bench",
    "test_example",
    "test_examples",
    "test_packaging",
)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the shared cases run: cpu, cuda (AMD's too), mps")
    parser.addoption("--part", default="0/1", help="every n-th test alone, as K/N: the K-th of N parts")


def pytest_configure(config):
    os.environ["LSTM_FUSED_TEST_DEVICE"] = config.getoption("device")  # cases.py reads it when imported
    # Without this cuBLAS refuses to serve tests that turn deterministic algorithms on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: SLOW.index(item.module.__name__) + 1 if item.module.__name__ in SLOW else 0)
    k, n = map(int, config.getoption("part").split("/"))
    items[:] = items[k::n]


@pytest.fixture
def deterministic():
    """PyTorch's deterministic mode, in which torch.empty is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
