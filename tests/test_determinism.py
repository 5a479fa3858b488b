"""Equal runs give equal bits in every process; dropout draws the same masks as torch.nn.LSTM."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from cases import DEVICE
from harness import ENGINES_HERE
from torch import nn

from lstm_fused import LSTM

ALL = [engine.name for engine in ENGINES_HERE]


def training_step(seed, **options):
    """Return outputs and gradients of a module large enough for several threads."""
    torch.manual_seed(seed)
    module = LSTM(48, 64, 2, bidirectional=True, dropout=0.3, **options)
    x, lengths = torch.randn(5, 16, 48, requires_grad=True), torch.randint(6, (16,))
    y, (h, c) = module(x, lengths=lengths)
    loss = y.sin().sum() + h.sum() + c.cos().sum()
    return y, h, c, *torch.autograd.grad(loss, [x, *module.parameters()])


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("threads", [1, 2])
def test_training_is_bitwise_reproducible(engine, threads, deterministic):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = training_step(0, engine=engine)
        assert all(map(torch.equal, first, training_step(0, engine=engine)))
        assert not torch.equal(first[0], training_step(1, engine=engine)[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(DEVICE == "cuda", reason="cuDNN has its own generator")
@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_the_masks_of_torch(engine, batch_first):
    theirs = nn.LSTM(5, 32, 3, dropout=0.4, batch_first=batch_first, dtype=torch.float64)
    ours = LSTM.from_torch(theirs, engine=engine)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    found = []
    for module in (ours, theirs):
        torch.manual_seed(7)
        found.append(module(x)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    torch.manual_seed(8)
    assert (ours(x)[0] - found[0]).abs().max() > 1e-3


# T, B and sizes of a layer.
SIZES = (
    (9, 64, {"input_size": 28, "hidden_size": 128}),
    (9, 37, {"input_size": 65, "hidden_size": 130, "proj_size": 30, "bidirectional": True}),
    (9, 16, {"input_size": 65, "hidden_size": 130, "dtype": torch.bfloat16}),
    (9, 16, {"input_size": 65, "hidden_size": 130, "dtype": torch.float64}),
    (6, 16, {"input_size": 530, "hidden_size": 530}),
)


def digest(engine, T, B, sizes):
    """Return a digest of the outputs and gradients."""
    torch.manual_seed(0)
    module = LSTM(**sizes, engine=engine)
    x = torch.randn(T, B, sizes["input_size"], dtype=sizes.get("dtype"), requires_grad=True)
    y, (h, c) = module(x, lengths=torch.randint(T + 1, (B,)))
    loss = y.sin().sum() + h.sum() + c.cos().sum()
    found = y, h, c, *torch.autograd.grad(loss, [x, *module.parameters()])
    parts = [tensor.detach().contiguous().view(torch.uint8).numpy() for tensor in found]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def print_digests():
    """Print digests for each engine and size as JSON, also in deterministic mode."""
    torch.set_num_threads(2)
    digests = {}
    for engine in ALL:
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            for T, B, sizes in SIZES:
                digests[f"{engine}, {sizes}, {deterministic}"] = digest(engine, T, B, sizes)
    print(json.dumps(digests))


@pytest.mark.skipif(DEVICE != "cpu", reason="tests the CPU")
def test_processes_on_a_busy_machine_give_equal_bits():
    # It ends with this process, also if that is killed.
    spin = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    busy = subprocess.Popen([sys.executable, "-c", spin])
    try:
        command = [sys.executable, "-W", "error", __file__]
        # Spinning threads would take CPU time from the other processes.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "passive"}
        # OMP_DYNAMIC allows OpenMP to start fewer threads on a busy machine; it still does so in torch's own
        # products, and so in the reference, unless the C++ engine has turned it off for them too.
        dynamic = environment | {"OMP_DYNAMIC": "true"}
        processes = [
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
            for env in (environment, environment, dynamic, dynamic)
        ]
        found = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        busy.kill()
        busy.wait()
    first, second, *others = map(json.loads, found)
    assert len(first) == 2 * len(SIZES) * len(ALL)
    assert second == first
    for other in others:
        differing = [name for name, digest in first.items() if other[name] != digest]
        assert [name for name in differing if not name.startswith("reference")] == []


if __name__ == "__main__":
    print_digests()
