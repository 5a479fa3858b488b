"""Whole models that hold the layers: torch.jit.trace, torch.jit.script and add_graph."""

import re
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from traced import DEEP, F64, OPTIONS, SIZES, Packed, Sorted, check_traced, inputs, make, same, saved

from lstm_fused import LSTM, LSTMCell, SequenceClassifier, lstm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning"),  # torch 2.15
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_option
@pytest.mark.parametrize("count", [1, 2, 4], ids=["x", "lengths", "states"])
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_a_traced_model_serves_every_size(options, count, recording):
    model = make(**options)
    check_traced(model, partial(inputs, model, count=count), (*SIZES, (0, 2), (3, 0)), recording)


@each_option
@pytest.mark.parametrize("count", [2, 4], ids=["lengths", "states"])
@pytest.mark.parametrize("kind", [Packed, Sorted])
def test_a_traced_model_packs_sequences(options, count, kind):
    model = make(kind, **options)
    check_traced(model, partial(inputs, model, count=count))


def drawn(*shapes):
    """A function of T, B that draws tensors of shapes in terms of T, B and numbers."""

    def draw(*size):
        known = dict(zip("TB", size, strict=False))
        sizes = [[known.get(dim) or int(dim) for dim in shape.split()] for shape in shapes]
        return tuple(torch.rand(*each, dtype=F64) for each in sizes)

    return draw


CELLS = {
    "plain": {},
    "variants": {"layer_norm": True, "zoneout_h": 0.1, "zoneout_c": 0.2, "cell_clip": 0.3},
    "coupled": {"coupled": True, "engine": "reference"},
    "bare": {"bias": False, "peephole": False},
}


class Steps(nn.Module):
    """A cell in a loop over as many steps as it was traced with."""

    def __init__(self, **options):
        super().__init__()
        self.cell = LSTMCell(3, 4, dtype=F64, **options)

    def forward(self, x, h=None, c=None):
        hx = None if h is None else (h, c)
        for x_t in x:
            hx = self.cell(x_t, hx)
        return hx


@pytest.mark.parametrize("shapes", [["2 B 3"], ["2 B 3", "B 4", "B 4"], ["2 3", "4", "4"]])
@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
def test_a_traced_cell(options, shapes):
    check_traced(make(Steps, **options), drawn(*shapes))


def function_of(names, **options):
    """`lstm` as a function of x, the weights and more tensors of these names."""

    def function(x, weight_ih, weight_hh, *more):
        given = dict(zip(names, more, strict=True))
        if "h0" in given:
            given["hx"] = given.pop("h0"), given.pop("c0")
        return lstm(x, weight_ih, weight_hh, **given, **options)

    return function


WHOLE = {"bias_ih": "16", "bias_hh": "16", "peephole": "3 4", "h0": "B 4", "c0": "B 4"}
FUNCTIONS = {
    "weights": ({}, {}),
    "all": (WHOLE, {}),
    "reverse": ({"peephole": "12", "bias_hh": "16"}, {"reverse": True, "cell_clip": 0.1}),
    "reference": (WHOLE, {"engine": "reference", "reverse": True}),
    "projection": ({"weight_hr": "2 4", "h0": "B 2", "c0": "B 4"}, {"reverse": True}),
    "masks": ({"zoneout_h": "T B 4", "zoneout_c": "T B 4", "h_mask": "B 4"}, {}),
    "layer_norm": ({"gain_ih": "16", "gain_hh": "16", "peephole": "12"}, {"reverse": True}),
}


@pytest.mark.parametrize(("tensors", "options"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_function_traced(tensors, options):
    P = 2 if "weight_hr" in tensors else 4
    given = drawn("T B 3", "16 3", f"16 {P}", *tensors.values())
    check_traced(function_of(tensors, **options), given)


def test_the_function_traced_with_lengths():
    draw = drawn("T B 3", "16 3", "16 4", "3 4")

    def given(T, B):
        return *draw(T, B), torch.arange(B) % (T + 1)

    for reverse in (False, True):
        check_traced(function_of(("peephole", "lengths"), reverse=reverse), given)


def test_traced_layers_without_a_batch():
    for layer in (LSTM(3, 4, dtype=F64, **DEEP), LSTM(3, 4, dtype=F64, batch_first=True)):
        check_traced(layer, drawn("T 3"))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["plain", "variants", "deep"])
def test_derivatives_of_a_loaded_trace(name, training):
    """Of both orders, and those of the masks that the same call has drawn."""
    model = make(**OPTIONS[name], recurrent_dropout=0.3).train(training)
    given = inputs(model, *SIZES[0], 4)
    program = saved(torch.jit.trace(model, given, check_trace=False))
    x, lengths, h, c = (each.requires_grad_() if each.is_floating_point() else each for each in given)

    def seeded(x, h, c):
        torch.manual_seed(1)
        return program(x, lengths, h, c)

    for _ in range(3):  # TorchScript optimizes the first calls, which may change the order of masks
        seeded(x, h, c)
    assert gradcheck(seeded, (x, h, c), fast_mode=True)
    assert gradgradcheck(seeded, (x, h, c), fast_mode=True)


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
x = torch.linspace(-1, 1, 63, dtype=torch.float64).view(7, 3, 3).requires_grad_()
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

    x = torch.linspace(-1, 1, 63, dtype=F64).view(7, 3, 3).requires_grad_()
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
