"""Options and order of the whole suite: the modules of `SLOW` run after all others, in this order."""

import os
import re
import warnings
from importlib import import_module

import pytest
import torch

SLOW = (
    "test_orders",
    "test_programs",
    "test_compile",
    "test_traced_models",
    "test_torch_onnx",
    "test_distributed",
    "test_interpreted",
    "test_bench",
    "test_example",
    "test_examples",
    "test_notebook",
    "test_packaging",
)
# Modules that stay in one part, because of fixtures that take seconds: two groups that take equally long.
UNDIVIDED = (
    ("test_packaging", "test_pool"),
    ("test_without_python", "test_distributed", "test_example"),
)
# Independent of the device: skipped with --device.
DEVICE_INDEPENDENT = (
    *("test_bench", "test_clang", "test_convert", "test_cpp", "test_cpp_hostile", "test_cpp_memory"),
    "test_cpp_gradients",
    *("test_cpp_plan", "test_cell_checks"),
    *("test_distributed", "test_docs", "test_example", "test_examples", "test_errors_of_torch", "test_fork"),
    *("test_docstrings", "test_notebook", "test_quantization", "test_recipes", "test_torch_onnx"),
    "test_traced_models",
    *("test_onnx", "test_onnx_faults", "test_onnx_files", "test_onnx_mutants", "test_onnx_reader"),
    *("test_metal", "test_metal_emulation", "test_metal_guard", "test_metal_host", "test_metal_sources"),
    *("test_packaging", "test_products", "gpu_offline"),
)


# What PyTorch says of float64 on MPS; in the emulation of a Mac, what the choice of an engine says.
NO_FLOAT64 = re.compile("MPS framework doesn't support float64|metal: takes .*not float64")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the tests: cpu, cuda (also for AMD), mps")
    parser.addoption("--part", default="0/1", help="run part K of N, given as K/N")


def pytest_configure(config):
    device = config.getoption("device")
    os.environ["LSTM_FUSED_TEST_DEVICE"] = device  # read by cases.py on import
    if device not in ("cpu", "mps"):  # MPS has no float64, in which most modules of tests create tensors
        torch.set_default_device(device)  # for tensors that tests create without a device
    # PyTorch imports this when a process first uses forward mode. The import calls torch.jit.script, which is
    # deprecated: a DeprecationWarning, and from torch 2.15 on a FutureWarning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("torch._decomp.decompositions_for_jvp")
    # Required by cuBLAS for deterministic algorithms.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_ignore_collect(collection_path, config):
    elsewhere = config.getoption("device") != "cpu" and collection_path.stem in DEVICE_INDEPENDENT
    return True if elsewhere else None


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: SLOW.index(item.module.__name__) + 1 if item.module.__name__ in SLOW else 0)
    k, n = map(int, config.getoption("part").split("/"))
    part_of = {name: group % n for group, names in enumerate(UNDIVIDED) for name in names}
    here = {*[item for item in items if item.module.__name__ not in part_of][k::n]}
    items[:] = [item for item in items if item in here or part_of.get(item.module.__name__) == k]


def without_float64(item):
    """Skip what needs float64 on a Mac's GPU, which has none."""
    on_mps = item.config.getoption("device") == "mps" or item.config.pluginmanager.hasplugin(
        "tests.metal.mac"
    )
    try:
        return (yield)
    except (TypeError, RuntimeError) as error:
        if on_mps and NO_FLOAT64.search(str(error)):
            pytest.skip("MPS has no float64")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from without_float64(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from without_float64(item))


@pytest.fixture
def deterministic():
    """Fill new memory with NaN: by PyTorch's deterministic mode, and in the C++ engine."""
    from lstm_fused.backends import cpp

    fill = torch.ops.lstm_fused.cpp_fill_new_memory if cpp.unavailable() is None else lambda on: None
    torch.use_deterministic_algorithms(True)
    fill(True)
    yield
    fill(False)
    torch.use_deterministic_algorithms(False)
