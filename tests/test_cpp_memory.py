"""The C++ engine where memory ends: an error that says how much was wanted, as torch's own does."""

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

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are set as Linux counts")
MB = 2**20
# Of each step 1 MB of y and c, and 4 MB of gates.
B, H = 2**15, 8
WEIGHTS = torch.zeros(4 * H, 1), torch.zeros(4 * H, H), None, None, None
STATES = torch.zeros(B, H), torch.zeros(B, H)


def forward(T, save=False):
    return forward_op["cpp"](torch.zeros(1, 1, 1).expand(T, B, 1), *WEIGHTS, *STATES, None, False, save)


def limit(more):
    """Leave this process so many bytes of address space."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def wanted(call, *arguments, **options):
    """How many bytes the error says were wanted."""
    with pytest.raises(RuntimeError, match=r"DefaultCPUAllocator: can't allocate memory") as caught:
        call(*arguments, **options)
    return float(re.search(r"you tried to allocate (\S+) bytes", str(caught.value))[1])


@pytest.mark.parametrize(
    "T", [2**26, 2**34, 2**45]
)  # past this machine's memory, any address space, counting
@pytest.mark.parametrize("save", [False, True])
def test_sequences_expanded_from_nothing(T, save):
    assert wanted(forward, T, save) >= T * MB


def test_by_a_module_with_gradients():
    x = torch.zeros(1, 1, 1).expand(2**26, B, 1)
    assert wanted(LSTM(1, H, engine="cpp"), x) >= 2**26 * MB


def test_rows_and_weights_expanded_from_nothing():
    one = torch.zeros(1, 1)
    rows = 2**45
    x, state = torch.zeros(1, 1, 1).expand(1, rows, 1), one.expand(rows, 1)
    weights = one.expand(4, 1), one.expand(4, 1), None, None, None
    assert wanted(forward_op["cpp"], x, *weights, state, state, None, False, False) >= rows * 4
    weights = one.expand(4, rows), one.expand(4, 1), None, None, None
    x = one[None].expand(1, 1, rows)
    assert wanted(forward_op["cpp"], x, *weights, one, one, None, False, False) >= rows * 4


def in_a_process(function):
    """Call a function of this file where a limit binds nothing else."""
    command = [sys.executable, "-W", "error", __file__, function.__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def meet_the_limit():
    torch.set_num_threads(1)
    y, _, _, c, gates = forward(50, save=True)
    saved = (c, gates, STATES[1], WEIGHTS[1], None, None, None, False)
    backward_op["cpp"](y, None, None, *saved)
    limit(180 * MB)  # less than dxw, for which none of what is kept is large enough
    kept = [backward_op["cpp"](y, None, None, *saved)[0]]  # in what the first has left
    assert wanted(backward_op["cpp"], y, None, None, *saved) == 200 * MB
    assert wanted(forward, 300) == 300 * MB
    del kept
    assert torch.equal(forward(50)[0], y), "it does not go on afterwards"


def use_what_is_kept():
    torch.set_num_threads(1)
    kept = [forward(40)[0] for _ in range(5)]
    limit(100 * MB)
    assert wanted(forward, 150) == 150 * MB
    del kept
    assert forward(150)[0].shape == (150, B, H)


@linux
def test_backward_and_going_on_after_it():
    in_a_process(meet_the_limit)


@linux
def test_what_is_kept_for_the_next_call_is_given_up_first():
    in_a_process(use_what_is_kept)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
