"""The recipes of examples/adapters.py without the libraries they are for, which tests/clients.py has."""

import pytest
import torch
from adapters import ForecastingLSTM, MaskedLSTM, per_sample_gradients
from cases import DEVICE
from torch import nn

from lstm_fused import LSTM

F64 = torch.float64
X = torch.randn(4, 6, 5, dtype=F64, device="cpu", generator=torch.Generator().manual_seed(0)).to(DEVICE)


def test_a_mask_is_taken_as_lengths():
    module, lengths = MaskedLSTM(5, 7, 2, batch_first=True, dtype=F64), torch.tensor([6, 1, 0, 3])
    mask = torch.arange(6) < lengths[:, None]
    expected = LSTM.forward(module, X, lengths=lengths)
    found = module(X, None, mask=mask)
    assert torch.equal(found[0], expected[0]) and all(map(torch.equal, found[1], expected[1]))
    assert torch.equal(module(X)[0], LSTM.forward(module, X)[0])


class Theirs(nn.LSTM):
    def forward(self, x, hx=None, lengths=None, enforce_sorted=True):
        raise NotImplementedError


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_may_be_in_any_order_and_zero(batch_first):
    theirs = Theirs(5, 7, 2, batch_first=batch_first, dtype=F64).eval()
    module = ForecastingLSTM.of(theirs)
    assert not module.training and module.weight_hh_l0.dtype == F64 and not module.weight_peephole_l1.any()
    x = X if batch_first else X.transpose(0, 1)
    start = tuple(torch.randn_like(state) for state in module.init_hidden_state(x))
    y, states = module(x, start, lengths=torch.tensor([6, 1, 0, 3]), enforce_sorted=False)
    expected, (h_n, c_n) = nn.LSTM.forward(theirs, x[:, :3] if batch_first else x[:3], start)
    torch.testing.assert_close(
        (y if batch_first else y.transpose(0, 1))[3, :3],
        (expected if batch_first else expected.transpose(0, 1))[3],
    )
    for state, first, last in zip(states, start, (h_n, c_n), strict=True):
        assert torch.equal(state[:, 2], first[:, 2])
        torch.testing.assert_close(state[:, 3], last[:, 3])
    assert module.repeat_interleave(states, 2)[0].shape == (2, 8, 7)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_is_copied_too():
    theirs = Theirs(5, 7, 2, bidirectional=True, proj_size=3, dtype=F64)
    module = ForecastingLSTM.of(theirs)
    x = X.transpose(0, 1)
    start = module.init_hidden_state(x)
    assert [state.shape for state in start] == [(4, 4, 3), (4, 4, 7)]
    found, expected = module(x, start), nn.LSTM.forward(theirs, x, start)
    torch.testing.assert_close(found[0], expected[0])
    assert module.repeat_interleave(found[1], 2)[0].shape == (4, 8, 3)


def test_per_sample_gradients_are_those_of_a_loop():
    module, dy = (
        LSTM(5, 7, 2, bidirectional=True, batch_first=True, dtype=F64),
        torch.randn(4, 6, 14).double(),
    )
    module.bias_hh_l0.requires_grad_(False)
    found = per_sample_gradients(module, [X], dy)
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert set(found) == set(trainable)
    for b in range(4):
        expected = torch.autograd.grad(module(X[b : b + 1])[0], trainable, dy[b : b + 1])
        for parameter, gradient in zip(trainable, expected, strict=True):
            torch.testing.assert_close(found[parameter][b], gradient)
