"""What `replace` skips stays as it is, and is reported with the reason."""

import re

import pytest
import torch
from replaced_models import IGNORED, Louder, Renamed
from torch import nn
from torch.ao.nn import quantizable
from torch.ao.nn.quantized import dynamic as quantized
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lstm_fused import LSTM, replace

pytestmark = IGNORED


def on_instance():
    lstm = nn.LSTM(5, 7)
    lstm.forward = lambda x: x
    return lstm


def mixed():
    lstm = nn.LSTM(5, 7)
    lstm.bias_hh_l0 = nn.Parameter(lstm.bias_hh_l0.double())
    return lstm


def reshaped():
    lstm = nn.LSTM(5, 7)
    lstm.weight_ih_l0 = nn.Parameter(torch.zeros(28, 4))
    return lstm


def missing():
    lstm = nn.LSTM(5, 7)
    del lstm.weight_hh_l0
    return lstm


def lazy():
    lstm = nn.LSTM(5, 7)
    lstm.weight_hh_l0 = nn.UninitializedParameter()
    return lstm


def integers():
    lstm = nn.LSTM(5, 7).requires_grad_(False)
    for parameter in lstm.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    return lstm


class Nothing(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


class FakeFSDP(Nothing):
    pass


FakeFSDP.__name__ = FullyShardedDataParallel.__name__


class FakeDDP(Nothing):
    pass


FakeDDP.__name__ = DistributedDataParallel.__name__


SKIPPED = {
    "subclass": (lambda: Louder(5, 7), "Louder is a subclass of torch.nn.LSTM with a forward of its own"),
    "cell": (lambda: Renamed(5, 7), "Renamed is a subclass of torch.nn.LSTMCell"),
    "ours": (lambda: LSTM(5, 7), "lstm_fused's already"),
    "quantized": (
        lambda: quantized.LSTM(5, 7),
        "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM is quantized",
    ),
    "quantizable": (lambda: quantizable.LSTM(5, 7), "torch.ao.nn.quantizable.modules.rnn.LSTM is quantized"),
    "script": (lambda: torch.jit.script(nn.LSTM(5, 7)), "compiled by TorchScript; replace before"),
    "instance": (on_instance, "its forward was set on the instance"),
    "dtypes": (mixed, "parameters are float32 on cpu and float64 on cpu"),
    "shape": (reshaped, r"weight_ih_l0 has shape \(28, 4\) rather than \(28, 5\)"),
    "missing": (missing, "weight_hh_l0 is missing"),
    "lazy": (lazy, "weight_hh_l0 is not initialised yet"),
    "float8": (integers, "weight_ih_l0 is float8_e4m3fn"),
    "FSDP": (lambda: FakeFSDP(nn.LSTM(5, 7)), "FullyShardedDataParallel knows its parameters already"),
    "DDP": (lambda: FakeDDP(nn.LSTM(5, 7)), "DistributedDataParallel knows its parameters already"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped_stays_and_is_reported(name):
    build, reason = SKIPPED[name]
    module = build()
    inner = getattr(module, "module", module)
    kind, names, fields = type(inner), [n for n, _ in module.named_parameters()], set(vars(inner))
    model = nn.Sequential(nn.Linear(3, 3), module)
    report = replace(model)
    key = "1.module" if inner is not module else "1"
    assert not report.replaced and not report.peepholes and list(report.skipped) == [key]
    assert type(inner) is kind and set(vars(inner)) == fields
    assert [n for n, _ in module.named_parameters()] == names
    assert re.match(reason, report.skipped[key]), report.skipped
    assert str(report).startswith(f"{key}") and "skipped: " in str(report)


def test_what_ddp_wraps_is_replaced_without_peepholes():
    assert list(replace(FakeDDP(nn.LSTM(5, 7)), peephole=False).replaced) == ["module"]
    assert list(replace(DataParallel(nn.LSTM(5, 7))).replaced) == ["module"]
    assert str(replace(nn.Linear(3, 3))) == "no LSTM found"


def test_attributes_that_were_changed_are_a_reason_to_skip():
    odd, lacking = nn.LSTM(3, 2), nn.LSTM(3, 2)
    odd.batch_first = 1
    del lacking.proj_size
    model = nn.Sequential(nn.LSTM(2, 2), odd, lacking)
    report = replace(model)
    assert list(report.replaced) == ["0"] and list(report.skipped) == ["1", "2"]
    assert "batch_first" in report.skipped["1"] and "proj_size" in report.skipped["2"]
