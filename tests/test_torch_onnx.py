"""`torch.onnx.export` writes models that hold the layers, and onnxruntime computes what they do."""

import logging

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lstm_fused
from lstm_fused import LSTM, LSTMCell, SequenceClassifier, lstm
from lstm_fused.autograd.operators import backward_op
from lstm_fused.onnx import from_onnx, translation_table

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore:It is recommended that constant folding:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated:FutureWarning"),
]
EXPORTERS = {"dynamo": True, "torchscript": False}
each_exporter = pytest.mark.parametrize("dynamo", EXPORTERS.values(), ids=EXPORTERS)
SIZES = (6, 4), (2, 1), (9, 3)  # T, B


@pytest.fixture(autouse=True)
def quiet(caplog):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


class Model(nn.Module):
    """A layer between others, with what its call takes."""

    def __init__(self, layer, lengths=False, states=False):
        super().__init__()
        I, H = layer.input_size, layer.hidden_size * layer.num_directions
        dtype = layer.weight_ih_l0.dtype
        self.before, self.layer, self.after = (
            nn.Linear(5, I, dtype=dtype),
            layer,
            nn.Linear(H, 2, dtype=dtype),
        )
        self.lengths, self.states = lengths, states

    def forward(self, x, *given):
        n = given[0] if self.lengths else None
        y, (h, c) = self.layer(self.before(x).tanh(), given[-2:] if self.states else None, n)
        return self.after(y), h, c

    def inputs(self, T, B):
        """Names and values of arguments, and the axes of T and B."""
        layer, dtype = self.layer, self.before.weight.dtype
        x = torch.randn(*((B, T) if layer.batch_first else (T, B)), 5, dtype=dtype)
        found = {"x": (x, {0: "B", 1: "T"} if layer.batch_first else {0: "T", 1: "B"})}
        if self.lengths:
            found["n"] = torch.tensor([0, 1, T, 2])[-B:].clamp(max=T), {0: "B"}
        if self.states:
            rows, H = layer.num_layers * layer.num_directions, layer.hidden_size
            for name in ("h", "c"):
                found[name] = torch.randn(rows, B, H, dtype=dtype), {1: "B"}
        return found


def spread(module):
    """Make the weights large enough that every gate and peephole has a visible effect."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def write(model, args, path, dynamo, axes=None, **options):
    """Export with the axes of T and B symbolic, by argument."""
    axes = axes or {f"x{n}": {} for n in range(len(args))}
    if dynamo:
        values = tuple(axes.values())
        # A function's variable arguments are one entry.
        named = (values[0], values[1:]) if isinstance(model, Model) and values[1:] else values
        options |= {"custom_translation_table": translation_table(), "dynamic_shapes": named}
        options |= {"verbose": False, "external_data": False}
    else:
        options["dynamic_axes"] = {name: each for name, each in axes.items() if each}
    torch.onnx.export(model, args, path, dynamo=dynamo, input_names=list(axes), **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check(session, model, *args):
    """Compare onnxruntime with the model."""
    with torch.no_grad():
        expected = model(*args)
    feed = {
        value.name: arg.numpy()
        for value, arg in zip(session.get_inputs(), (a for a in args if a is not None), strict=True)
    }
    found = session.run(None, feed)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5)


DEEP = {"num_layers": 2, "bidirectional": True}
CASES = {
    "plain": ({}, False, False),
    "deep": ({**DEEP, "batch_first": True}, False, False),
    "lengths": ({**DEEP, "batch_first": True}, True, False),
    "states": (DEEP, False, True),
    "lengths and states": (DEEP, True, True),
    "no bias": ({**DEEP, "bias": False}, True, False),
    "no peepholes": ({**DEEP, "peephole": False}, True, True),
    "bare": ({"peephole": False, "bias": False}, False, False),
    "coupled": ({**DEEP, "coupled": True}, True, False),
    "dropout": ({"num_layers": 2, "dropout": 0.5, "recurrent_dropout": 0.5}, False, False),
    "reference": ({**DEEP, "engine": "reference"}, True, False),
}


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [(name, False) for name in CASES]
    + [(name, True) for name in ("deep", "lengths and states", "no bias", "no peepholes")],
)
def test_a_model_runs_in_onnxruntime_for_every_size(name, dynamo, tmp_path):
    options, lengths, states = CASES[name]
    model = spread(Model(LSTM(6, 7, **options), lengths, states))
    given = model.inputs(*SIZES[0])
    session = write(
        model,
        tuple(value for value, _ in given.values()),
        tmp_path / "model.onnx",
        dynamo,
        {name: axes for name, (_, axes) in given.items()},
    )
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "LSTM"]
    assert len(nodes) == model.layer.num_layers * model.layer.num_directions
    for T, B in SIZES:
        check(session, model, *(value for value, _ in model.inputs(T, B).values()))


class Cells(nn.Module):
    """A cell in a loop, whose number of steps a program fixes."""

    def __init__(self, **options):
        super().__init__()
        self.cell = LSTMCell(5, 7, **options)

    def forward(self, x, h, c):
        for x_t in x.unbind(0):
            h, c = self.cell(x_t, (h, c))
        return h, c


@each_exporter
@pytest.mark.parametrize("options", [{}, {"peephole": False, "bias": False}], ids=["all", "bare"])
def test_a_cell(options, dynamo, tmp_path):
    model = spread(Cells(**options))
    args = [(torch.randn(3, B, 5), torch.randn(B, 7), torch.randn(B, 7)) for B in (4, 2)]
    axes = {"x": {1: "B"}, "h": {0: "B"}, "c": {0: "B"}}
    session = write(model, args[0], tmp_path / "model.onnx", dynamo, axes)
    for each in args:
        check(session, model, *each)


class Function(nn.Module):
    """`lstm_fused.lstm` in the reverse direction."""

    def __init__(self):
        super().__init__()
        self.weight_ih, self.weight_hh = nn.Parameter(torch.zeros(28, 5)), nn.Parameter(torch.zeros(28, 7))
        self.peephole = nn.Parameter(torch.zeros(3, 7))

    def forward(self, x):
        return lstm(x, self.weight_ih, self.weight_hh, peephole=self.peephole, reverse=True)[0]


@each_exporter
def test_a_function_and_a_classifier(dynamo, tmp_path):
    model = spread(Function())
    session = write(model, (torch.randn(4, 3, 5),), tmp_path / "f.onnx", dynamo, {"x": {0: "T", 1: "B"}})
    check(session, model, torch.randn(6, 2, 5))
    model = spread(SequenceClassifier(5, 7, 2, 4))
    axes = {"input": {0: "B", 1: "T"}, "lengths": {0: "B"}}
    args = torch.randn(4, 3, 5), torch.tensor([3, 1, 0, 2])
    session = write(model, args, tmp_path / "c.onnx", dynamo, axes)
    check(session, model, torch.randn(2, 6, 5), torch.tensor([2, 6]))


def test_a_program_of_torch_export_without_optimization(tmp_path):
    model, x = spread(nn.Sequential(nn.Linear(3, 5), LSTM(5, 7, 2))), torch.randn(4, 2, 3)
    program = torch.export.export(model, (x,))
    table = translation_table()
    options = {"custom_translation_table": table, "optimize": False, "verbose": False}
    torch.onnx.export(program, (x,), tmp_path / "model.onnx", **options)
    y, (h, c) = model(x)
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input": x.numpy()})
    for ours, theirs in zip(found, (y, h, c), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs.detach(), rtol=0, atol=1e-5)


@each_exporter
def test_from_onnx_reads_what_torch_writes(dynamo, tmp_path):
    module = spread(LSTM(5, 7, 2, bidirectional=True))
    axes = {"input": {0: "T", 1: "B"}}
    write(module, (torch.randn(4, 3, 5),), tmp_path / "model.onnx", dynamo, axes)
    again = from_onnx(tmp_path / "model.onnx")
    x = torch.randn(6, 2, 5)
    torch.testing.assert_close(again(x)[0], module(x)[0])


REFUSED = {
    "projection": ({"proj_size": 3}, "proj_size=0, because ONNX's LSTM operator has none"),
    "layer norm": ({"layer_norm": True}, "without layer_norm, because ONNX's LSTM operator has none"),
    "zoneout": ({"zoneout_h": 0.1}, "without zoneout_h"),
    "cell clip": ({"cell_clip": 2.0}, "without cell_clip"),
    "bfloat16": ({"dtype": torch.bfloat16}, "float16, float32 or float64"),
}


@pytest.mark.parametrize(
    ("name", "dynamo"), [(name, False) for name in REFUSED] + [("zoneout", True), ("projection", True)]
)
def test_what_onnx_lacks_is_refused(name, dynamo, tmp_path):
    options, message = REFUSED[name]
    layer = LSTM(5, 7, **options).eval()
    x = torch.randn(4, 2, 5, dtype=layer.weight_ih_l0.dtype)
    with pytest.raises(Exception, match=f"(?s)model: expected .*{message}") as raised:
        write(nn.Sequential(layer).eval(), (x,), tmp_path / "model.onnx", dynamo)
    assert dynamo or isinstance(raised.value, lstm_fused.ArgumentError)
    assert not (tmp_path / "model.onnx").exists()


def test_recurrent_dropout_in_training_mode_is_refused(tmp_path):
    model = nn.Sequential(LSTM(5, 7, recurrent_dropout=0.5)).train()
    with pytest.raises(Exception, match="without recurrent_dropout in training mode"):
        write(
            model,
            (torch.randn(4, 2, 5),),
            tmp_path / "model.onnx",
            False,
            training=torch.onnx.TrainingMode.TRAINING,
        )


class Slope(nn.Module):
    """A model that computes a gradient."""

    def forward(self, y, c, gates, c0, weight):
        return backward_op["reference"](y, None, None, c, gates, c0, weight, None, None, None, False)[0]


@each_exporter
def test_gradients_are_refused(dynamo, tmp_path):
    sizes = ((4, 2, 7), (4, 2, 7), (4, 2, 28), (2, 7), (28, 7))
    with pytest.raises(Exception, match="model: expected a program without gradients, which ONNX lacks"):
        write(Slope().eval(), tuple(map(torch.randn, sizes)), tmp_path / "model.onnx", dynamo)


def test_the_operators_of_every_engine_are_translated():
    names = {operator.name() for operator in translation_table()}
    assert names == {
        f"lstm_fused::{each}"
        for each in dir(torch.ops.lstm_fused)
        if each.endswith(("_forward", "_backward", "_products", "_gradients"))
    }
