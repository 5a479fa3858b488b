"""Options of the whole suite; fast tests first: a module named here runs after all others, in this order."""

import os

import pytest
import torch

SLOW = (
    "test_orders",
    "test_programs",
    "test_compile",
    "test_distributed",
    "test_interpreted",
    "test_bench",
    "test_example",
    "test_examples",
    "test_packaging",
)
# About this machine's processor, files and programs, which no device changes: tested once, without one.
ABOUT_THE_HOST = (
    *("test_bench", "test_convert", "test_cpp", "test_cpp_hostile", "test_cpp_memory", "test_cpp_plan"),
    *("test_distributed", "test_docs", "test_example", "test_examples", "test_errors_of_torch", "test_fork"),
    *("test_onnx", "test_onnx_faults", "test_onnx_files", "test_onnx_mutants", "test_onnx_reader"),
    *("test_packaging", "gpu_offline"),
)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests run: cpu, cuda (AMD's too), mps")
    parser.addoption("--part", default="0/1", help="every n-th test alone, as K/N: the K-th of N parts")


def pytest_configure(config):
    device = config.getoption("device")
    os.environ["LSTM_FUSED_TEST_DEVICE"] = device  # cases.py reads it when imported
    if device not in ("cpu", "mps"):  # MPS has no float64, in which most tests compute
        torch.set_default_device(device)  # what tests make without naming a device is made there
    # Without this cuBLAS refuses to serve tests that turn deterministic algorithms on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_ignore_collect(collection_path, config):
    elsewhere = config.getoption("device") != "cpu" and collection_path.stem in ABOUT_THE_HOST
    return True if elsewhere else None


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
