"""The modules with the Triton engine: what they give is what they give on the CPU."""

import copy
from functools import partial

import pytest
import torch
from cases import DEVICE
from kernels_here import ON_GPU, running
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import LSTM, LSTMCell

F64 = torch.float64
# In the interpreter a layer takes seconds.
OPTIONS = [{"num_layers": 1}]
if ON_GPU:
    OPTIONS += [
        {"num_layers": 2, "bidirectional": True, "proj_size": 3},
        {"num_layers": 2, "batch_first": True},
    ]


@pytest.fixture(autouse=True)
def step_kernel(monkeypatch):
    with running("step", monkeypatch):
        yield


def outcome(module, x, **options):
    """Output, states and all gradients, on the CPU."""
    x = x.detach().requires_grad_()
    y, (h_n, c_n) = module(x, **options)
    leaves = [x, *module.parameters()]
    loss = y.cos().sum() + h_n.sin().sum() + c_n.sin().sum()
    return [t.cpu() for t in (y, h_n, c_n, *torch.autograd.grad(loss, leaves))]


def on_both(module, x, **options):
    """The outcome on the CPU by the reference, and here by Triton."""
    there, here = copy.deepcopy(module).cpu(), copy.deepcopy(module).to(DEVICE)
    there.engine, here.engine = "reference", "triton"
    return outcome(here, x.to(DEVICE), **options), outcome(there, x.cpu(), **options)


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [None, (3, 0, 2)], ids=str)
def test_equals_the_cpu(options, lengths):
    module = LSTM(5, 7, dtype=F64, **options)
    shape = (3, 4, 5) if module.batch_first else (4, 3, 5)
    given = {} if lengths is None else {"lengths": torch.tensor(lengths, device="cpu")}
    close(*on_both(module, torch.randn(shape, dtype=F64), **given))


def test_lengths_may_be_on_the_device():
    module = LSTM(5, 7, dtype=F64, engine="triton").to(DEVICE)
    x, lengths = torch.randn(4, 3, 5, dtype=F64, device=DEVICE), torch.tensor([3, 0, 4])
    close(module(x, lengths=lengths)[0], module(x, lengths=lengths.to(DEVICE))[0])


def test_packed_sequences():
    module = LSTM(5, 7, dtype=F64, engine="triton").to(DEVICE)
    x, lengths = torch.randn(4, 3, 5, dtype=F64, device=DEVICE), torch.tensor([3, 4, 1])
    packed, (h_n, _) = module(pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False))
    y, (h_n_again, _) = module(x, lengths=lengths)
    assert packed.data.shape == (8, 7)
    close(h_n, h_n_again)
    close(packed.data.sum(0), y.sum((0, 1)))


def test_cell():
    cell = LSTMCell(5, 7, dtype=F64, engine="triton").to(DEVICE)
    other = copy.deepcopy(cell).cpu()
    other.engine = "reference"
    x = torch.randn(3, 5, dtype=F64, device=DEVICE)
    close(tuple(t.cpu() for t in cell(x)), tuple(other(x.cpu())))


@pytest.mark.parametrize("B", [1, 3])
def test_pieces_equal_the_whole_bit_for_bit(B):
    module, x = (
        LSTM(37, 7, dtype=F64, engine="triton").to(DEVICE),
        torch.randn(7, B, 37, dtype=F64).to(DEVICE),
    )
    with torch.no_grad():
        whole, hx, pieces = module(x)[0], None, []
        for piece in x.split((1, 6)):
            y, hx = module(piece.clone(), hx)
            pieces.append(y)
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own doing
def test_compiles_without_a_graph_break():
    module = LSTM(5, 7, dtype=F64, engine="triton").to(DEVICE)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, dtype=F64, device=DEVICE)
    close(outcome(compiled, x), outcome(module, x))


def test_under_autocast():
    module = LSTM(5, 7, engine="triton").to(DEVICE)
    x = torch.randn(4, 3, 5, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = module(x)[0]
    torch.testing.assert_close(y.float(), module(x)[0], rtol=0.02, atol=0.02)
