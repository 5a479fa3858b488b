"""Kernels run on a GPU (--device cuda), or in a process that started with Triton's interpreter."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What is tested here is what the check of a kernel would run too.
os.environ.setdefault("LSTM_FUSED_GPU", "unchecked")
if INTERPRETED:
    from tests.gpu_offline.interpreted import mending  # noqa: F401


def pytest_ignore_collect(collection_path, config):
    on_gpu = config.getoption("device") == "cuda"
    runs = on_gpu or (INTERPRETED and collection_path.name != "test_cuda.py")
    return None if runs else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed and item.config.getoption("device") == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # then all that follow would fail too
            said = f"{item.nodeid} leaves the GPU unusable for this process: {error}\n{report.longreprtext}"
            pytest.exit(said, returncode=3)
    return report
