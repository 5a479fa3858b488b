"""Calls on more threads than the machine has cores give right results in bounded time."""

import os
import subprocess
import sys
import time

import pytest
import torch

from lstm_fused import LSTM
from lstm_fused.backends import cpp

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

T, B, H = 40, 4, 512
TIMES = 10  # those of one thread; if barriers only spun, it would be thousands


def training_step(threads):
    """Return a step's results in float64 and its seconds; the second step counts."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, x = LSTM(H, H, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    for _ in range(2):
        begin = time.perf_counter()
        y, _ = module(x)
        gradients = torch.autograd.grad(y.sum(), list(module.parameters()))
        seconds = time.perf_counter() - begin
    return [y.detach(), *gradients], seconds


def compare():
    expected, one = training_step(1)
    found, many = training_step(64)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert many < TIMES * one + 1, (one, many)


def test_64_threads():
    for call in "forward", "saving forward", "backward":
        sizes = [T, B, H, H, H]
        chosen = cpp.plan(cpp.isa(), torch.float64, sizes, call, 64, 2**20)
        assert chosen["threads"] >= 16, "the threads split channels and meet at every step"
    done = subprocess.run(
        [sys.executable, "-c", "import test_oversubscribed as test; test.compare()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
