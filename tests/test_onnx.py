"""ONNX files: onnxruntime gives equal results, and the files read back as equal modules."""

import inspect
import itertools
import re
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

import lstm_fused
from lstm_fused import LSTM, SequenceClassifier
from lstm_fused.onnx import export, from_onnx

OPTIONS = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional", "peephole"), values, strict=True))
    for values in itertools.product((1, 3), (True, False), (True, False), (True, False), (True, False))
]


def option_id(options):
    return "-".join(f"{k}{int(v)}" for k, v in options.items() if v)


def run(path, *inputs):
    """Run a file with onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def check(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def spread(module):
    """Make the weights large enough that every gate and peephole has a visible effect."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_onnxruntime_agrees_and_the_file_reads_back(options, tmp_path):
    module = spread(LSTM(5, 7, **options))
    rows = module.num_layers * module.num_directions
    for lengths, states in itertools.product((False, True), (False, True)):
        path = tmp_path / f"{lengths}{states}.onnx"
        export(module, path, lengths=lengths, states=states)
        for T, B in ((6, 4), (2, 1), (9, 3)):
            x = torch.randn(B, T, 5) if module.batch_first else torch.randn(T, B, 5)
            hx = (torch.randn(rows, B, 7), torch.randn(rows, B, 7)) if states else None
            n = torch.tensor([0, 1, T, 2], dtype=torch.int32)[-B:] if lengths else None
            with torch.no_grad():
                y, (h_n, c_n) = module(x, hx, n)
            check(run(path, x, *([n] if lengths else ()), *(hx or ())), (y, h_n, c_n))
        same = from_onnx(path)
        assert repr(same) == repr(module)
        for name, value in module.state_dict().items():
            assert torch.equal(same.state_dict()[name], value), name


@pytest.mark.parametrize("lengths", [False, True])
def test_classifier(lengths, tmp_path):
    model = spread(SequenceClassifier(5, 7, 2, 4))
    export(model, tmp_path / "model.onnx", lengths=lengths)
    x, n = torch.randn(3, 6, 5), torch.tensor([6, 2, 3], dtype=torch.int32) if lengths else None
    with torch.no_grad():
        check(run(tmp_path / "model.onnx", x, *([n] if lengths else ())), [model(x, n)])
        same = from_onnx(tmp_path / "model.onnx")
        assert torch.equal(same(x, n), model(x, n))
    assert repr(same) == repr(model)


@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter is deprecated
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_reads_files_of_pytorch(options, tmp_path):
    theirs = nn.LSTM(5, 7, **options)
    torch.onnx.export(theirs, (torch.randn(3, 4, 5),), tmp_path / "model.onnx", dynamo=False)
    ours = from_onnx(tmp_path / "model.onnx")
    assert repr(ours) == repr(LSTM.from_torch(theirs, peephole=False))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_read_back(dtype, tmp_path):
    module = LSTM(5, 7, dtype=dtype)
    export(module, tmp_path / "model.onnx")
    same = from_onnx(tmp_path / "model.onnx", engine="reference")
    assert same.engine == "reference"
    for name, value in module.state_dict().items():
        assert torch.equal(same.state_dict()[name], value) and same.state_dict()[name].dtype == dtype


def test_export_evaluates_parametrized_weights(tmp_path):
    module = LSTM(5, 7)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    export(module, tmp_path / "model.onnx")
    assert torch.equal(from_onnx(tmp_path / "model.onnx").weight_hh_l0, module.weight_hh_l0)


def test_export_expands_coupled_gates_and_ignores_training_options(tmp_path):
    options = {"coupled": True, "recurrent_dropout": 0.5, "forget_bias": 2.0, "bidirectional": True}
    module = spread(LSTM(5, 7, 2, **options)).eval()
    export(module, tmp_path / "model.onnx")
    x = torch.randn(6, 3, 5)
    y, states = module(x)
    check(run(tmp_path / "model.onnx", x), (y, *states))
    again = from_onnx(tmp_path / "model.onnx")
    assert again.weight_ih_l0.shape == (28, 5) and torch.equal(again(x)[0], y)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (LSTM(5, 7, proj_size=3), {}, "proj_size=0, because ONNX's LSTM operator has no projection, got 3"),
        (LSTM(5, 7, layer_norm=True), {}, "no layer_norm, because ONNX's LSTM operator has none, got True"),
        (LSTM(5, 7, zoneout_h=0.1), {}, "no zoneout_h, .* got 0.1"),
        (LSTM(5, 7, zoneout_c=0.1), {}, "no zoneout_c, .* got 0.1"),
        (LSTM(5, 7, cell_clip=3.0), {}, "no cell_clip, .* got 3.0"),
        (LSTM(5, 7, dtype=torch.bfloat16), {}, "float16, float32 or float64.*got torch.bfloat16"),
        (
            SequenceClassifier(5, 7, 1, 4),
            {"states": True},
            "states: expected False with a SequenceClassifier",
        ),
    ],
    ids=["projection", "layer_norm", "zoneout_h", "zoneout_c", "cell_clip", "bfloat16", "states"],
)
def test_export_refuses_options_that_onnx_lacks(module, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(module, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_export_covers_every_option():
    """Every option of `LSTM` is written to the file, refused, or has no effect in eval mode."""
    assert set(inspect.signature(LSTM).parameters) == {
        *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "peephole"),
        *("proj_size", "dtype", "coupled", "layer_norm", "zoneout_h", "zoneout_c", "cell_clip"),
        *("dropout", "device", "engine", "forget_bias", "recurrent_dropout"),
    }


def lstm(graph):
    return next(node for node in graph.node if node.op_type == "LSTM")


def add_attribute(name, value):
    return lambda graph: lstm(graph).attribute.append(helper.make_attribute(name, value))


def insert_relu(graph):
    joint = next(node for node in graph.node if node.input[0] == lstm(graph).output[0])
    graph.node.insert(1, helper.make_node("Relu", [lstm(graph).output[0]], ["relu"]))
    joint.input[0] = "relu"


def show_relu(graph):
    graph.node.append(helper.make_node("Relu", [lstm(graph).output[1]], ["relu"]))
    graph.output[1].name = "relu"


def remove_layers(graph):
    del graph.node[:], graph.output[1:]
    graph.node.append(helper.make_node("Identity", ["input"], ["output"]))


def compute_weight(graph):
    node = lstm(graph)
    graph.node.insert(0, helper.make_node("Identity", [node.input[1]], ["computed"]))
    node.input[1] = "computed"


def swap_steps_and_directions(graph):
    joint = next(node for node in graph.node if node.input[0] == lstm(graph).output[0])
    joint.attribute[0].ints[:] = [1, 0, 2, 3]


def skip_a_layer(graph):
    _, second, third = [node for node in graph.node if node.op_type == "LSTM"]
    third.input[0] = second.input[0]


def start_elsewhere(graph):
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 1, 7), np.float32), "ones"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 7]), "batch"))
    graph.node.insert(0, helper.make_node("Expand", ["ones", "batch"], ["everywhere"]))
    lstm(graph).input[5] = "everywhere"


def make_states(value):
    def change(graph):
        of_shape = helper.make_node("ConstantOfShape", ["batch"], ["made"])
        tensor = onnx.numpy_helper.from_array(np.array([value], np.float32))
        of_shape.attribute.append(helper.make_attribute("value", tensor))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, 7]), "batch"))
        graph.node.insert(0, of_shape)
        lstm(graph).input[5] = "made"

    return change


def test_reads_zeros_as_initial_states(tmp_path):
    module = LSTM(5, 7, 3, bidirectional=True)
    export(module, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    make_states(0)(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    assert repr(from_onnx(tmp_path / "model.onnx")) == repr(module)


def show_one_step(graph):
    end = next(node for node in graph.node if node.output[0] == "output")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "first"))
    end.CopyFrom(helper.make_node("Gather", [end.input[0], "first"], ["output"]))


def compute_input(graph):
    graph.node.insert(0, helper.make_node("Relu", ["input"], ["computed"]))
    lstm(graph).input[0] = "computed"


def drop_peephole(graph):
    lstm(graph).input[7] = ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_attribute("clip", 1.0), "clip of LSTM 'y_l0' to be absent, or at least 87, got 1.0"),
        (add_attribute("input_forget", 2), "input_forget of LSTM 'y_l0' to be 0 or 1, got 2"),
        (add_attribute("input_forget", 1), "layers of one kind"),
        (add_attribute("activations", ["Relu"] * 6), "activations of LSTM"),
        (insert_relu, "outputs of LSTM 'y_l0' to go on .* got .*'relu'"),
        (show_relu, "output 'relu' to be the output, h_n or c_n .* got 'relu' of Relu"),
        (show_one_step, r"output 'output' to be .* got the output of layer 2 moved to \(B, 14\)"),
        (compute_input, "the first LSTM to read a graph input"),
        (remove_layers, r"LSTM nodes, and at most one Gemm, got 0 Gemm among \['Identity'\]"),
        (compute_weight, "constant weights at LSTM 'y_l0', got 'computed', computed"),
        (swap_steps_and_directions, r"outputs of LSTM 'y_l0' to go on as \[T, B, D \* H\]"),
        (skip_a_layer, "outputs of LSTM 'y_l1' to go on"),
        (start_elsewhere, "inputs or zeros as initial states of LSTM 'y_l0', got 'everywhere'"),
        (make_states(1), "inputs or zeros as initial states of LSTM 'y_l0', got 'made'"),
        (drop_peephole, "layers of one kind"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_from_onnx_refuses_other_computations(change, message, tmp_path):
    path = tmp_path / "model.onnx"
    export(LSTM(5, 7, 3, bidirectional=True), path)
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    with pytest.raises(ValueError, match=message):
        from_onnx(path)


def test_from_onnx_refuses_a_head_on_another_tensor(tmp_path):
    path = tmp_path / "model.onnx"
    export(SequenceClassifier(5, 7, 2, 4), path)
    model = onnx.load(path)
    squeeze = next(node for node in model.graph.node if node.op_type == "Squeeze")
    squeeze.input[0] = squeeze.input[0].replace("h_n", "c_n")
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"the Gemm to read Y_h of a last LSTM.* got c_n"):
        from_onnx(path)


def test_missing_packages_are_named(monkeypatch):
    assert lstm_fused.onnx.export is export
    monkeypatch.setitem(sys.modules, "onnx", None)  # hide the package
    for name in ("lstm_fused.onnx", "lstm_fused.interop.onnx"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(lstm_fused, "onnx")
    message = re.escape("lstm_fused.onnx needs the package onnx: pip install 'lstm_fused[onnx]'")
    with pytest.raises(ModuleNotFoundError, match=message):
        lstm_fused.onnx  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'onyx'"):
        lstm_fused.onyx  # noqa: B018
