"""Whole models that hold the layers: torch.jit.trace, torch.jit.script and add_graph."""

import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import LSTM, LSTMCell, SequenceClassifier, lstm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning"),  # torch 2.15
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
DEEP = {"num_layers": 2, "bidirectional": True}
OPTIONS = {
    "plain": {},
    "deep": {**DEEP, "batch_first": True, "proj_size": 3},
    "variants": {**DEEP, "layer_norm": True, "zoneout_h": 0.1, "zoneout_c": 0.2, "cell_clip": 1.0},
    "coupled": {"coupled": True, "bias": False, "engine": "reference"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SIZES = (5, 2), (7, 3), (1, 1), (2, 5)  # T, B


class Model(nn.Module):
    """A layer between others, whose call takes what is not None."""

    def __init__(self, **options):
        super().__init__()
        self.before, self.lstm = nn.Linear(3, 3), LSTM(3, 4, **options)

    def forward(self, x, lengths=None, h=None, c=None):
        y, (h_n, c_n) = self.lstm(self.before(x), None if h is None else (h, c), lengths)
        return y.sin(), h_n, c_n


def make(**options):
    torch.manual_seed(0)
    return Model(**options).eval()


def inputs(model, T, B, count):
    """The first ones of x, lengths, h_0, c_0."""
    layer = model.lstm
    rows, H = layer.num_layers * layer.num_directions, layer.hidden_size
    x = torch.randn(*((B, T) if layer.batch_first else (T, B)), 3)
    states = torch.randn(rows, B, layer.proj_size or H), torch.randn(rows, B, H)
    return (x, torch.arange(B).flip(0) % (T + 1), *states)[:count]


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@each_option
@pytest.mark.parametrize("count", [1, 2, 4], ids=["x", "lengths", "states"])
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_a_traced_model_serves_every_size(options, count, recording, tmp_path):
    model = make(**options)
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(model, inputs(model, *SIZES[0], count))
    torch.jit.save(traced, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert list(loaded.state_dict()) == list(model.state_dict())
    for T, B in SIZES:
        args = inputs(model, T, B, count)
        expected = model(*args)
        slopes = torch.autograd.grad(sum(each.square().sum() for each in expected), [*model.parameters()])
        for program in (traced, loaded):
            found = program(*args)
            same(found, expected)
            named = dict(program.named_parameters())
            own = [named[name] for name, _ in model.named_parameters()]
            loss = sum(each.square().sum() for each in found)
            torch.testing.assert_close(torch.autograd.grad(loss, own), slopes, rtol=1e-4, atol=1e-5)


class Packed(nn.Module):
    """A layer over packed sequences."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = LSTM(3, 4, **options)

    def forward(self, x, lengths, h, c):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, (h_n, c_n) = self.lstm(packed, (h, c))
        return pad_packed_sequence(y)[0], h_n, c_n


def test_a_traced_model_packs_sequences():
    model = Packed(**DEEP)

    def given(T, B):
        return torch.randn(T, B, 3), 1 + torch.arange(B) % T, *torch.randn(2, 4, B, 4)

    traced = torch.jit.trace(model, given(5, 2))
    for T, B in ((5, 2), (7, 3), (1, 1), (2, 5)):
        args = given(T, B)
        same(traced(*args), model(*args))


def test_a_traced_layer_cell_and_function():
    for layer in (LSTM(3, 4, **DEEP), LSTM(3, 4, batch_first=True)):
        traced = torch.jit.trace(layer, (torch.randn(5, 3),))
        x = torch.randn(8, 3)
        same(traced(x), layer(x))
    cell = LSTMCell(3, 4)
    args = [(torch.randn(B, 3), (torch.randn(B, 4), torch.randn(B, 4))) for B in (2, 5)]
    same(torch.jit.trace(cell, args[0])(*args[1]), cell(*args[1]))
    weights = torch.randn(16, 3), torch.randn(16, 4)

    def function(x, peephole):
        return lstm(x, *weights, peephole=peephole, reverse=True)[0]

    traced = torch.jit.trace(function, (torch.randn(5, 2, 3), torch.zeros(3, 4)))
    x, peephole = torch.randn(7, 3, 3), torch.randn(3, 4)
    same(traced(x, peephole), function(x, peephole))


def test_a_traced_model_draws_new_masks_and_keeps_its_mode():
    """As torch.nn.Dropout does, whose mode a trace keeps too."""
    model = make(num_layers=2, dropout=0.3, recurrent_dropout=0.3, zoneout_h=0.3).train()
    traced = torch.jit.trace(model, inputs(model, *SIZES[0], 1), check_trace=False)
    (x,) = inputs(model, *SIZES[1], 1)
    found = []
    for program in (traced, model):
        torch.manual_seed(1)
        found.append(program(x))
    same(*found)
    for program in (traced, traced.eval()):
        assert not torch.equal(program(x)[0], program(x)[0])


def test_tracing_warns_of_nothing_that_concerns_the_layers():
    code = """
import warnings, torch, lstm_fused
with warnings.catch_warnings(record=True) as seen:
    states = torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)
    lstm, lengths = lstm_fused.LSTM(3, 4, bidirectional=True), torch.tensor([5, 3])
    torch.jit.trace(lstm, (torch.randn(5, 2, 3), states, lengths))
    torch.jit.trace(lstm_fused.LSTMCell(3, 4), (torch.randn(2, 3),))
print([str(each.message) for each in seen if "Tracer" in each.category.__name__])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


LOADS = """
import torch
{first}
traced = torch.jit.load({path!r})
x = torch.linspace(-1, 1, 63).view(7, 3, 3).requires_grad_()
y, h_n, c_n = traced(x)
y.sum().backward()
print(y.sum().item(), x.grad.sum().item())
"""


def test_a_saved_trace_runs_in_a_process_that_imports_the_package(tmp_path):
    model = make(**DEEP)
    path = str(tmp_path / "model.pt")
    torch.jit.save(torch.jit.trace(model, inputs(model, *SIZES[0], 1)), path)

    def load(first):
        code = LOADS.format(first=first, path=path)
        return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)

    x = torch.linspace(-1, 1, 63).view(7, 3, 3).requires_grad_()
    y = model(x)[0].sum()
    y.backward()
    found = load("import lstm_fused")
    assert found.returncode == 0, found.stderr
    torch.testing.assert_close(tuple(map(float, found.stdout.split())), (y.item(), x.grad.sum().item()))
    without = load("")
    assert without.returncode == 1 and "Unknown builtin op: lstm_fused::" in without.stderr


class Branching(nn.Module):
    """A model that only torch.jit.script can record, for its condition."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        y, (h_n, _) = self.lstm(x)
        return 2 * y if bool(y.sum() > 0) else -h_n


def test_script_compiles_a_model_with_a_traced_layer(tmp_path):
    layer = LSTM(3, 4, **DEEP)
    model = Branching(layer)
    expected = model(x := torch.randn(6, 3, 3)), model(-x)
    model.lstm = torch.jit.trace(layer, (torch.randn(5, 2, 3),))
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert {name.removeprefix("lstm.") for name in loaded.state_dict()} == layer.state_dict().keys()
    same((loaded(x), loaded(-x)), expected)
    loaded(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in loaded.parameters() if p.dim() > 1)


def scripted_function(x: torch.Tensor, weight_ih: torch.Tensor, weight_hh: torch.Tensor) -> torch.Tensor:
    return lstm(x, weight_ih, weight_hh)[0]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("LSTM", LSTM(3, 4)),
        ("LSTM", Branching(LSTM(3, 4))),
        ("LSTM", SequenceClassifier(3, 4, 1, 2)),
        ("LSTMCell", nn.Sequential(LSTMCell(3, 4))),
        ("lstm", scripted_function),
        ("lstm", lstm),
    ],
)
def test_script_names_the_cure(name, what):
    message = rf"torch\.jit\.script cannot compile lstm_fused\.{name}, .* torch\.jit\.trace\(model\.layer"
    with pytest.raises(RuntimeError, match=message):
        torch.jit.script(what)


def test_add_graph_of_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(**DEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tensorboard.SummaryWriter(tmp_path) as writer:
            writer.add_graph(model, inputs(model, *SIZES[0], 2))
        events = EventAccumulator(str(tmp_path))
        events.Reload()
    operators = [node.op for node in events.Graph().node]
    assert sum(bool(re.fullmatch("lstm_fused::.*_forward", op)) for op in operators) == 4 * 5  # outputs
