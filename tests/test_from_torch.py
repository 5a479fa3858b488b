"""`from_torch` and `to_torch` refuse modules that they cannot copy exactly."""

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic as quantized
from torch.nn.utils import parametrizations, prune

from lstm_fused import LSTM, ArgumentError, LSTMCell


class Louder(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Renamed(nn.LSTM):
    pass


def normed(lstm):
    parametrizations.weight_norm(lstm, "weight_hh_l0", dim=0)
    return lstm


def pruned(lstm):
    prune.random_unstructured(lstm, "weight_hh_l0", amount=0.5)
    return lstm


def on_the_cpu(cls):
    with torch.device("cpu"):
        return cls(5, 7)


def mixed(lstm):
    lstm.bias_hh_l0 = nn.Parameter(lstm.bias_hh_l0.double())
    return lstm


NOT_COPIED = {
    "GRU": (lambda: nn.GRU(5, 7), "a torch.nn.LSTM, got GRU"),
    "cell": (lambda: nn.LSTMCell(5, 7), "a torch.nn.LSTM, got LSTMCell"),
    "GRU's state dict": (
        lambda: nn.GRU(5, 7).state_dict(),
        "the state dict of a torch.nn.LSTM, got another: .*size m",
    ),
    "model's": (
        lambda: nn.Sequential(nn.LSTM(5, 7)).state_dict(),
        "the .*with 'weight_ih_l0', got '0.weight_ih_l0', ",
    ),
    "too much": (
        lambda: LSTM(5, 7).state_dict(),
        "the .*, got another: .*Unexpected key.*weight_peephole_l0",
    ),
    "too little": (
        lambda: {"weight_ih_l0": torch.zeros(28, 5)},
        "the .*, got another: .*Missing key.*weight_hh_l0",
    ),
    "lists": (
        lambda: {"weight_ih_l0": [1.0]},
        "the state dict of a torch.nn.LSTM, with 'weight_ih_l0', got ",
    ),
    "ours": (lambda: LSTM(5, 7), "a torch.nn.LSTM, got lstm_fused.LSTM"),
    "None": (lambda: None, "a torch.nn.LSTM, got NoneType"),
    "class": (lambda: nn.LSTM, "a torch.nn.LSTM, got type"),
    "quantized": (lambda: on_the_cpu(quantized.LSTM), "a torch.nn.LSTM, got LSTM"),
    "subclass": (lambda: Louder(5, 7), "a torch.nn.LSTM, got Louder, a subclass that overrides forward"),
    "weight norm": (lambda: normed(nn.LSTM(5, 7)), "plain parameters, not .*, got .*weight_hh_l0.original0"),
    "pruned": (
        lambda: pruned(nn.LSTM(5, 7)),
        "plain parameters, not .*, got weight_hh_l0, weight_hh_l0_mask",
    ),
    "dtypes": (lambda: mixed(nn.LSTM(5, 7)), "parameters of one dtype on one device, got .*float32.* and "),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", NOT_COPIED)
def test_from_torch_refuses_other_modules(name):
    lstm, message = NOT_COPIED[name]
    with pytest.raises(ArgumentError, match=f"^lstm: expected {message}"):
        LSTM.from_torch(lstm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 3}], ids=str)
def test_from_torch_copies_a_state_dict(bias, options):
    theirs, x = nn.LSTM(5, 7, bias=bias, **options, dtype=torch.float64), torch.randn(4, 3, 5).double()
    weights = theirs.state_dict()
    ours = LSTM.from_torch(weights, peephole=bias)
    assert ours.peephole == bias and ours.weight_ih_l0.data_ptr() != weights["weight_ih_l0"].data_ptr()
    assert ours.training and all(parameter.requires_grad for parameter in ours.parameters())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_from_torch_leaves_the_tensors_of_a_state_dict_alone():
    lstm = nn.LSTM(5, 7).requires_grad_(False)
    lstm.bias_hh_l0.requires_grad_()
    copy = LSTM.from_torch(dict(lstm.named_parameters()))
    for name, parameter in lstm.named_parameters():
        assert parameter.requires_grad == copy.get_parameter(name).requires_grad == (name == "bias_hh_l0")
    assert all(p.requires_grad for p in LSTM.from_torch(lstm.state_dict()).parameters())


def test_from_torch_copies_a_subclass_that_computes_the_same():
    theirs, x = Renamed(5, 7), torch.randn(4, 3, 5)
    torch.testing.assert_close(LSTM.from_torch(theirs)(x)[0], theirs(x)[0])
    with pytest.raises(ArgumentError, match="peephole: expected True or False, got 'no'"):
        LSTM.from_torch(theirs, peephole="no")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
def test_cells_are_copied_there_and_back(bias, peephole):
    theirs = nn.LSTMCell(5, 7, bias, dtype=torch.float64).eval()
    theirs.weight_hh.requires_grad_(False)
    ours, x = LSTMCell.from_torch(theirs, peephole=peephole, engine="reference"), torch.randn(3, 5).double()
    assert ours.engine == "reference" and ours.peephole is peephole and not ours.training
    for cell in (ours, ours.to_torch()):
        torch.testing.assert_close(cell(x), theirs(x))
        assert not cell.weight_hh.requires_grad and cell.weight_ih.requires_grad
        assert cell.weight_ih.data_ptr() != theirs.weight_ih.data_ptr()
    assert type(ours.to_torch()) is nn.LSTMCell and not ours.to_torch().training
    coupled = LSTMCell(5, 7, peephole=False, coupled=True, dtype=torch.float64)
    torch.testing.assert_close(coupled.to_torch()(x), coupled(x))


def test_cells_that_cannot_be_copied():
    with pytest.raises(ArgumentError, match=r"cell: expected a torch\.nn\.LSTMCell, got LSTM"):
        LSTMCell.from_torch(nn.LSTM(5, 7))
    with pytest.raises(
        ArgumentError, match=r"cell: expected plain parameters, not .*, got weight_hh, weight_h"
    ):
        LSTMCell.from_torch(prune.random_unstructured(nn.LSTMCell(5, 7), "weight_hh", amount=0.5))
    with pytest.raises(ArgumentError, match=r"weight_peephole: expected zeros, because torch"):
        LSTMCell(5, 7).to_torch()
    with pytest.raises(ArgumentError, match=r"zoneout_c: expected none, as torch.nn.LSTM has none, got 0.5"):
        LSTMCell(5, 7, peephole=False, zoneout_c=0.5).to_torch()


@pytest.mark.parametrize("change", [normed, pruned])
def test_to_torch_copies_plain_parameters(change):
    with pytest.raises(ArgumentError, match=r"weight_hh_l0.*: expected plain parameters, not parametrized"):
        change(LSTM(5, 7, peephole=False)).to_torch()
