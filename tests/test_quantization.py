"""Dynamic quantization of a model that holds the layers: they stay as they are, and right."""

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic as quantized
from torch.ao.quantization import quantize_dynamic

from lstm_fused import LSTM, LSTMCell, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


class Model(nn.Module):
    """A linear layer after a layer and a cell of ours."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = LSTM(5, 8, bidirectional=True, **options)
        self.cell, self.head = LSTMCell(16, 8, **options), nn.Linear(8, 4)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.head(self.cell(y[-1])[0])


@pytest.mark.parametrize("kinds", [{nn.Linear}, {nn.Linear, nn.LSTM, nn.LSTMCell}, None])
def test_quantize_dynamic_leaves_our_layers_alone(kinds):
    torch.manual_seed(0)
    model = Model().eval()
    changed = quantize_dynamic(model, kinds, dtype=torch.qint8)
    assert type(changed.lstm) is LSTM and type(changed.cell) is LSTMCell
    assert isinstance(changed.head, quantized.Linear)
    x = torch.randn(6, 3, 5)
    for found, expected in zip(changed.lstm(x)[1], model.lstm(x)[1], strict=True):
        assert torch.equal(found, expected)
    with torch.no_grad():
        error = (changed(x) - model(x)).abs().max()
    assert 0 < error < 0.02, "the error of an int8 linear layer"
    assert torch.equal(quantize_dynamic(model, {LSTM}, dtype=torch.qint8)(x), model(x))


def test_restored_layers_are_quantized_by_torch():
    torch.manual_seed(0)
    model = Model(peephole=False).eval()
    with torch.no_grad():
        expected = model(x := torch.randn(6, 3, 5))
        assert not restore(model).skipped
        changed = quantize_dynamic(model, {nn.LSTM, nn.LSTMCell}, dtype=torch.qint8)
        assert isinstance(changed.lstm, quantized.LSTM) and isinstance(changed.cell, quantized.LSTMCell)
        torch.testing.assert_close(changed(x), expected, rtol=0, atol=0.02)
