"""The same run twice is the same bit for bit; dropout draws what torch.nn.LSTM draws."""

import pytest
import torch
from cases import DEVICE
from harness import ENGINES_HERE
from torch import nn

from lstm_fused import LSTM

ALL = [engine.name for engine in ENGINES_HERE]


def training_step(seed, **options):
    """Outputs and gradients of a module large enough to be shared between threads."""
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


@pytest.mark.skipif(DEVICE == "cuda", reason="cuDNN draws for itself")
@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_what_torch_draws(engine, batch_first):
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
