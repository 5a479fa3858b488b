"""The C++ engine out of memory: the error says how many bytes were requested, as torch's own does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstm_fused import LSTM
from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends import cpp

if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit is set from Linux's /proc")
MB = 2**20
# Sizes per step: y and c 1 MB each, gates 4 MB.
B, H = 2**15, 8
WEIGHTS = torch.zeros(4 * H, 1), torch.zeros(4 * H, H), *[None] * 4
STATES = torch.zeros(B, H), torch.zeros(B, H)


def forward(T, save=False):
    return forward_op["cpp"](torch.zeros(1, 1, 1).expand(T, B, 1), *WEIGHTS, *STATES, None, False, save)


def limit(more):
    """Limit the address space to this many more bytes."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def requested(call, *arguments, **options):
    """Return the number of bytes in the out-of-memory error."""
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: can't allocate memory") as caught:
        call(*arguments, **options)
    return float(re.search(r"you tried to allocate (\S+) bytes", str(caught.value))[1])


@pytest.mark.parametrize("T", [2**26, 2**34, 2**45])  # beyond the memory, the address space, int64
@pytest.mark.parametrize("save", [False, True])
def test_huge_expanded_sequences(T, save):
    assert requested(forward, T, save) >= T * MB


def test_a_module_with_gradients():
    x = torch.zeros(1, 1, 1).expand(2**26, B, 1)
    assert requested(LSTM(1, H, engine="cpp"), x) >= 2**26 * MB


def test_huge_expanded_rows_and_weights():
    one = torch.zeros(1, 1)
    rows = 2**45
    x, state = torch.zeros(1, 1, 1).expand(1, rows, 1), one.expand(rows, 1)
    weights = one.expand(4, 1), one.expand(4, 1), *[None] * 4
    assert requested(forward_op["cpp"], x, *weights, state, state, None, False, False) >= rows * 4
    weights = one.expand(4, rows), one.expand(4, 1), *[None] * 4
    x = one[None].expand(1, 1, rows)
    assert requested(forward_op["cpp"], x, *weights, one, one, None, False, False) >= rows * 4


def in_a_process(function):
    """Call a function of this file in a subprocess with its own limit."""
    command = [sys.executable, "-W", "error", __file__, function.__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def meet_the_limit():
    torch.set_num_threads(1)
    y, _, _, c, gates = forward(50, save=True)
    saved = (c, gates, STATES[1], WEIGHTS[1], None, None, None, False)
    backward_op["cpp"](y, None, None, *saved)
    limit(180 * MB)  # less than dxw; no cached block is large enough for it
    kept = [backward_op["cpp"](y, None, None, *saved)[0]]  # reuses the first call's memory
    assert requested(backward_op["cpp"], y, None, None, *saved) == 200 * MB
    assert requested(forward, 300) == 300 * MB
    del kept
    assert torch.equal(forward(50)[0], y), "calls fail after the error"


def use_cached_memory():
    torch.set_num_threads(1)
    kept = [forward(40)[0] for _ in range(5)]
    limit(100 * MB)
    assert requested(forward, 150) == 150 * MB
    del kept
    assert forward(150)[0].shape == (150, B, H)


@linux
def test_backward_and_calls_after_it():
    in_a_process(meet_the_limit)


@linux
def test_cached_memory_is_released_first():
    in_a_process(use_cached_memory)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
