"""A model that holds torch's LSTMs in every way, for the tests of `replace`, `restore` and `replacing`."""

import pytest
import torch
from cases import DEVICE
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

F64 = torch.float64
IGNORED = [  # warnings of torch's own layers and tools
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
OPTIONS = {
    "plain": {},
    "busy": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    "projected": {"num_layers": 2, "proj_size": 3},
    "bare": {"bias": False},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
X = torch.randn(4, 3, 5, dtype=F64, device="cpu", generator=torch.Generator().manual_seed(0)).to(DEVICE)


class Model(nn.Module):
    """An encoder used twice, a cell, and a decoder that shares the encoder's weights."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.LSTM(5, 7, dtype=F64, **options)
        self.stack = nn.Sequential(nn.Linear(7, 5, dtype=F64), nn.ModuleDict({"again": self.encoder}))
        self.decoder = nn.LSTM(5, 7, dtype=F64, **options)
        for name, parameter in self.encoder.named_parameters():
            setattr(self.decoder, name, parameter)
        self.cell = nn.LSTMCell(7, 7, dtype=F64)
        self.aside = [self.encoder]

    def forward(self, x):
        y = self.stack[0](self.encoder(x)[0])
        y, _ = self.decoder(self.aside[0](y)[0][..., :5])
        return self.cell(y[0])[1]


def make(**options):
    torch.manual_seed(0)
    return Model(**options).eval()


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Louder(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Renamed(nn.LSTMCell):
    pass


PARAMETRIZED = {
    "weight norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "old weight norm": lambda m: weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5),
}
