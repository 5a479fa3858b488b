"""The layer in other libraries, by the recipes of docs/replace.md; run by `make test-clients`."""

import copy

import pytest
import torch
from adapters import ForecastingLSTM, MaskedLSTM, per_sample_gradients
from torch import nn

import lstm_fused

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations among themselves and of NumPy


def test_pytorch_forecasting():
    from pytorch_forecasting.models.nn import rnn

    theirs = rnn.LSTM(5, 7, 2, batch_first=True).eval()
    ours, x = ForecastingLSTM.of(theirs), torch.randn(4, 6, 5)
    start = tuple(torch.randn(2, 4, 7) for _ in range(2))
    lengths = torch.tensor([2, 6, 0, 3])
    y, states = ours(x, start, lengths=lengths, enforce_sorted=False)
    expected, wanted = theirs(x, start, lengths=lengths, enforce_sorted=False)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(y[row, :length], expected[row, :length])
    for state, other, first in zip(states, wanted, start, strict=True):
        valid = (
            lengths > 0
        )  # theirs gives a sequence of length 0 other states than its own unless all are zero
        torch.testing.assert_close(state[:, valid], other[:, valid])
        assert torch.equal(state[:, ~valid], first[:, ~valid])
    for method in (ours.init_hidden_state, theirs.init_hidden_state):
        assert all(state.shape == (2, 4, 7) and not state.any() for state in method(x))
    torch.testing.assert_close(ours.repeat_interleave(start, 3), theirs.repeat_interleave(start, 3))


def test_pytorch_forecasting_trains_and_predicts():
    import numpy as np
    import pandas as pd
    from pytorch_forecasting import DeepAR, TimeSeriesDataSet

    frame = pd.DataFrame({"value": np.sin(np.arange(80) / 5.0), "time": np.arange(80), "group": "0"})
    sizes = {"max_encoder_length": 8, "max_prediction_length": 3, "min_encoder_length": 4}
    names = {"time_idx": "time", "target": "value", "group_ids": ["group"]}
    data = TimeSeriesDataSet(frame, **names, **sizes, time_varying_unknown_reals=["value"])
    model = DeepAR.from_dataset(data, hidden_size=8, rnn_layers=2)
    x, _ = next(iter(data.to_dataloader(train=True, batch_size=4, num_workers=0)))
    model.rnn = ForecastingLSTM.of(model.rnn)
    model(x)["prediction"].square().mean().backward()
    assert model.rnn.weight_peephole_l0.grad.any()


@pytest.mark.parametrize("mode", [True, False])
def test_torchrl(mode):
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    keys = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
    ours = MaskedLSTM(5, 7, batch_first=True, peephole=False)
    B, T = 3, 6 if mode else 1
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    is_init[:, 0] = True
    if mode:
        is_init[1, 4] = True  # a second trajectory begins: theirs is split, padded and masked
    given = {"x": torch.randn(B, T, 5), "is_init": is_init}
    found = []
    for lstm in (ours, ours.to_torch()):
        module = LSTMModule(lstm=lstm, **keys)
        with set_recurrent_mode(mode):
            found.append(module(TensorDict(dict(given), [B, T])))
    for key in ("y", ("next", "h"), ("next", "c")):
        torch.testing.assert_close(found[0][key], found[1][key])


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = lstm_fused.LSTM(5, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_sb3_contrib_trains_the_peepholes():
    import gymnasium
    from sb3_contrib import RecurrentPPO

    game = gymnasium.make("CartPole-v1")
    model = RecurrentPPO("MlpLstmPolicy", game, n_steps=16, batch_size=16, n_epochs=1)
    report = lstm_fused.replace(model.policy)
    model.policy.optimizer.add_param_group({"params": report.peepholes.values()})
    model.learn(32)
    assert len(report.peepholes) == 2 and all(peephole.any() for peephole in report.peepholes.values())


def test_thop_counts_by_the_rule_of_torch():
    from thop import profile
    from thop.rnn_hooks import count_lstm

    theirs, x = nn.LSTM(5, 7, 2, bidirectional=True), torch.randn(6, 4, 5)
    ours = lstm_fused.LSTM.from_torch(theirs)
    expected, _ = profile(theirs, (x,), verbose=False)
    found, _ = profile(ours, (x,), custom_ops={lstm_fused.LSTM: count_lstm}, verbose=False)
    assert found == expected > 0
    assert profile(lstm_fused.LSTM.from_torch(theirs), (x,), verbose=False)[0] == 0, "then no rule is needed"


def test_torchao_leaves_our_layers_alone():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, x = Classifier().eval(), torch.randn(4, 6, 5)
    with torch.no_grad():
        expected, weights = model(x), copy.deepcopy(model.lstm.state_dict())
        quantize_(model, Int8WeightOnlyConfig())
        assert type(model.head.weight) is not nn.Parameter
        for name, weight in model.lstm.named_parameters():
            assert type(weight) is nn.Parameter and torch.equal(weight, weights[name])
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0.02)


@pytest.fixture
def registered():
    from opacus import GradSampleModule
    from opacus.grad_sample import register_grad_sampler

    register_grad_sampler(lstm_fused.LSTM)(per_sample_gradients)
    yield
    del GradSampleModule.GRAD_SAMPLERS[lstm_fused.LSTM]


def test_opacus_per_sample_gradients(registered):
    from opacus import GradSampleModule

    model, x = Classifier(), torch.randn(4, 6, 5)
    wrapped = GradSampleModule(copy.deepcopy(model))
    wrapped(x).square().mean(1).mean().backward()
    for b in range(4):
        loss = model(x[b : b + 1]).square().mean()
        gradients = torch.autograd.grad(loss, model.parameters())
        for p, gradient in zip(wrapped.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad_sample[b], gradient, rtol=1e-4, atol=1e-6)


def test_opacus_trains_privately(registered):
    from opacus import PrivacyEngine

    data = torch.utils.data.TensorDataset(torch.randn(32, 6, 5), torch.randint(0, 3, (32,)))
    model = Classifier()
    before = model.lstm.weight_peephole_l0.detach().clone()
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for x, target in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert not torch.equal(model._module.lstm.weight_peephole_l0, before)
