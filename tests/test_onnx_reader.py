"""`from_onnx` on graphs of other exporters: it reads those that a module computes, and refuses the rest."""

import time

import numpy as np
import onnx
import pytest
import torch
from onnx import defs
from onnx_graphs import (
    Graph,
    H,
    I,
    bare,
    classifier,
    constant_nodes,
    coupled,
    differs,
    made_of_sizes,
    one_size,
    state_inputs,
    two_layers,
    two_nodes,
    weights_as_inputs,
)

from lstm_fused import LSTM, SequenceClassifier
from lstm_fused.onnx import from_onnx

NEWEST = defs.onnx_opset_version()


def read(model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    return from_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        *((two_layers(opset), {"num_layers": 2}) for opset in (7, 9, 10, 12, 13, 14, 18, 21, NEWEST)),
        (two_layers(dtype=np.float64), {"num_layers": 2, "dtype": torch.float64}),
        (two_layers(layout=1), {"num_layers": 2, "batch_first": True}),
        (two_nodes(), {"bidirectional": True}),
        (one_size(), {"bidirectional": True, "batch_first": True}),
        (one_size([6] * 3), {"bidirectional": True, "batch_first": True}),
        (made_of_sizes(), {}),
        (bare(), {}),
        (bare(layout=1), {"batch_first": True}),
        *((bare(clip=bound), {}) for bound in (100.0, 1e30, float("inf"))),
        (bare(activations=["sigmoid", "TANH", "tanh"]), {}),
        (coupled(), {"num_layers": 2, "coupled": True}),
        (coupled(2), {"num_layers": 2, "coupled": True, "bidirectional": True}),
        (coupled(2, 1, bias=False), {"coupled": True, "bidirectional": True, "bias": False}),
        (coupled(1, 1, peephole=False), {"coupled": True, "peephole": False}),
        (state_inputs(), {"num_layers": 2}),
        (weights_as_inputs(), {}),
        (constant_nodes(), {"bidirectional": True, "batch_first": True}),
    ],
)
def test_reads_other_forms(model, options, tmp_path):
    module = read(model, tmp_path)
    assert repr(module) == repr(LSTM(I, H, **options))
    assert module.weight_ih_l0.dtype == options.get("dtype", torch.float32)
    for T, B in ((6, 3), (2, 1), (9, 4)):
        assert differs(module, model, T, B) < 1e-5


def test_reads_a_classifier_on_the_last_state(tmp_path):
    model = classifier()
    module = read(model, tmp_path)
    assert isinstance(module, SequenceClassifier) and module.lstm.num_layers == 2
    assert max(differs(module, model, T, B) for T, B in ((6, 3), (2, 1))) < 1e-5


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_step_of_one_sequence_is_batch_first_if_it_is_transposed(batch_first, tmp_path):
    graph = Graph()
    x = graph.input("input", 1, 1, I)
    if batch_first:
        x = graph.node("Transpose", [x], "steps", perm=[1, 0, 2])
    graph.lstm(0, x)
    y = graph.join("y0", "joined")
    if batch_first:
        y = graph.node("Transpose", [y], "output", perm=[1, 0, 2])
    assert read(graph.model(y), tmp_path).batch_first is batch_first


def concatenated(kind):
    """Return 60 nodes that each concatenate their input with itself: states, an input or a constant."""
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    graph.lstm(0, x)
    ends = {"state": "h0", "input": x, "constant": graph.constant("n", [1])}
    x = ends[kind]
    for k in range(60):
        x = graph.node("Concat", [x, x], f"x{k}", axis=0)
    return graph.model("y0", x)


@pytest.mark.parametrize("kind", ["state", "input", "constant"])
def test_60_doublings_are_refused_at_once(kind, tmp_path):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="path: expected output 'x59' to be"):
        read(concatenated(kind), tmp_path)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("kind", ["Identity", "Transpose", "Relu"])
def test_a_chain_of_5000_nodes_is_read_or_refused(kind, tmp_path):
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    for k in range(5000):
        x = graph.node(kind, [x], f"x{k}", **{"perm": [0, 1, 2]} if kind == "Transpose" else {})
    graph.lstm(0, x)
    start = time.perf_counter()
    if kind == "Relu":
        with pytest.raises(ValueError, match=r"the first LSTM to read a graph input .* got 'x0' of Relu"):
            read(graph.model("y0"), tmp_path)
    else:
        assert repr(read(graph.model("y0"), tmp_path)) == "LSTM(5, 7, peephole=True)"
    assert time.perf_counter() - start < 20


def test_cyclic_graphs_are_refused(tmp_path):
    graph = Graph()
    graph.input("input", "T", "B", I)
    graph.lstm(0, graph.node("Identity", ["a"], "a"))
    with pytest.raises(ValueError, match=r"path: expected a valid ONNX file, got .*topologically sorted"):
        read(graph.model("y0"), tmp_path)


def test_huge_declared_constants_take_no_memory(tmp_path):
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    many = graph.node("ConstantOfShape", [graph.constant("large", [2**31, 2**31])], "zeros")
    graph.node("Reshape", [many, graph.constant("flat", [-1])], "flat_zeros")
    graph.lstm(0, x, h="flat_zeros")
    with pytest.raises(ValueError, match="path: expected inputs or zeros as initial states of LSTM 'y0'"):
        read(graph.model("y0"), tmp_path)
