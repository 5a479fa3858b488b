"""`from_onnx` refuses graphs that no module computes, with an error about the cause."""

import tempfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_edits import (
    after,
    attribute,
    constant,
    dtype,
    exchange,
    find,
    node_input,
    opset,
    read_backwards,
    size,
    slice_beyond,
    weight,
)
from onnx_graphs import (
    Graph,
    H,
    I,
    bare,
    classifier,
    constant_nodes,
    coupled,
    lstms,
    one_size,
    state_inputs,
    two_layers,
    two_nodes,
)

from lstm_fused import LSTM
from lstm_fused.onnx import export, from_onnx


def custom_domain(model):
    lstms(model)[0].domain = "custom"
    model.opset_import.append(helper.make_opsetid("custom", 1))


def function(model):
    """Redefine Transpose as a function."""
    body, opsets = [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Transpose", ["x"], ["y"], body, opsets))


def conditional(model):
    values = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Identity", ["x2"], ["z"])], "branch", [], values)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("If", ["yes"], ["output"], then_branch=branch, else_branch=branch)
    find(model, "output").CopyFrom(node)


def sparse(model):
    values = helper.make_tensor("W0", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1, 4 * H, I]))


def half_the_data(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:50]


def first_layer_of_doubles(model):
    for tensor in model.graph.initializer:
        if tensor.name in ("W0", "R0", "B0", "P0"):
            constant(tensor.name, numpy_helper.to_array(tensor), np.float64)(model)


def default(model):
    """Give the input a default value."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 1, I), np.float32), "input"))


def exported():
    """Return the model that `export` writes with lengths and states."""
    with tempfile.TemporaryDirectory() as folder:
        export(LSTM(I, H, 2), f"{folder}/model.onnx", lengths=True, states=True)
        return onnx.load(f"{folder}/model.onnx")


def first_layer_without_h(model):
    node_input(0, 5, "")(model)
    del model.graph.input[1]


def unread_input(model):
    model.graph.input.append(helper.make_tensor_value_info("h_0", TensorProto.FLOAT, [1, "B", H]))


def lengths_of_open_T(length):
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    graph.lstm(0, x, lengths=graph.constant("n", [length] * 3, np.int32))
    return graph.model("y0")


def rows(*of_layers):
    """Use other rows of h_0 for the layers."""

    def change(model):
        for k, row in enumerate(of_layers):
            constant(f"h_first{k}_starts", [row])(model)
            constant(f"h_first{k}_ends", [row + 1])(model)

    return change


def put_first(k):
    """Move a graph input to the front."""
    return lambda model: model.graph.input.insert(0, model.graph.input.pop(k))


def alpha(model):
    find(model, "scores").attribute.append(helper.make_attribute("alpha", float("nan")))


OUTPUT = "output '{}' to be the output, h_n or c_n of a module"
SHAPES = r"W \(D, 4H, I\), R \(D, 4H, H\), B \(D, 8H\) and P \(D, 3H\) of LSTM 'y0'"
LENGTHS = r"lengths of LSTM 'y0' from a graph input, int32 \(B,\), or T for all"
STATES = r"graph inputs \[2, B, H\], row for row, as initial h, or none"
FIRST = r"the first LSTM to read a graph input \[T, B, I\] or \[B, T, I\] with I = 5 of torch.float32"
ORDER = "graph inputs in the order h_0, c_0, by layers"
MIXED = "float16, float32 or float64 in all weights of LSTM 'y0', got FLOAT and "
CHECKED = "a valid ONNX file, got ValidationError: "


def nothing(model):
    pass


FAULTS = [
    # lengths
    (lambda: one_size([6, 6, 5]), nothing, LENGTHS),
    (lambda: lengths_of_open_T(6), nothing, LENGTHS),
    (lambda: lengths_of_open_T(1009), nothing, LENGTHS),
    (two_nodes, node_input(0, 4, ""), "the same lengths in all layers"),
    (two_nodes, node_input(0, 4, "lengths"), LENGTHS.replace("y0", "yr")),  # of 64 bits
    # outputs
    (two_layers, read_backwards("h_n"), OUTPUT.format("h_n")),
    (two_layers, after("h_n", "Transpose", perm=[1, 0, 2]), OUTPUT.format("h_n")),
    (two_layers, after("h_n", "Reshape", [-1, 2, H]), OUTPUT.format("h_n")),
    (two_layers, after("h_n", "Gather", [1, 0], axis=0), OUTPUT.format("h_n")),
    (two_layers, lambda m: find(m, "h_n").input.append("h0"), OUTPUT.format("h_n")),
    (two_layers, lambda m: find(m, "h_n").input.__setitem__(1, "c1"), OUTPUT.format("h_n")),
    (lambda: coupled(2), read_backwards("h_n"), OUTPUT.format("h_n")),
    (lambda: coupled(2), lambda m: find(m, "h_n").input.__setitem__(1, "h0"), OUTPUT.format("h_n")),
    (two_layers, lambda m: find(m, "h_n").input.pop(), OUTPUT.format("h_n")),
    (two_layers, exchange("h_n", "c_n"), OUTPUT.format("h_n")),
    (bare, lambda m: m.graph.output.reverse(), "outputs in the order of output, h_n, c_n, got"),
    (bare, after("h0", "Squeeze", [0]), OUTPUT.format("h0")),
    (two_nodes, read_backwards("output"), OUTPUT.format("output")),
    (two_layers, after("output", "Reshape", [3, -1, H]), OUTPUT.format("output")),
    (two_layers, after("output", "Transpose", perm=[1, 0, 2]), OUTPUT.format("output")),
    (two_layers, constant("x2_axes", [0]), OUTPUT.format("output")),
    (one_size, after("output", "Reshape", [6, 3, 2 * H]), OUTPUT.format("output")),
    (lambda: one_size(B=6), after("output", "Transpose", perm=[1, 0, 2]), OUTPUT.format("output")),
    (two_layers, slice_beyond("output", 20000), OUTPUT.format("output")),
    (two_layers, slice_beyond("output", 2**31 - 1, step=2), OUTPUT.format("output")),
    (bare, after("y0", "Squeeze", []), OUTPUT.format("y0")),
    (one_size, lambda m: find(m, "joined_steps").attribute[0].ints.reverse(), OUTPUT.format("output")),
    (lambda: bare(2), nothing, OUTPUT.format("y0")),
    (lambda: bare(2, layout=1), nothing, OUTPUT.format("y0")),
    (classifier, after("scores", "Reshape", [-1]), "output 'scores' to be"),
    (classifier, constant("last", 0), "the Gemm to read Y_h of a last LSTM"),
    (bare, dtype("output", TensorProto.DOUBLE), OUTPUT.format("y0")),
    (bare, lambda m: m.graph.output.__delitem__(slice(None)), "outputs of different names"),
    (bare, lambda m: setattr(m.graph.output[0], "name", "z"), CHECKED),
    # initial states
    (two_layers, rows(1, 0), STATES),
    (two_layers, rows(0, 0), STATES),
    (two_layers, node_input(0, 5, ""), STATES),
    (lambda: two_layers(h="c_0", c="h_0"), nothing, ORDER),
    (lambda: two_layers(h="a", c="b"), put_first(2), ORDER),
    (state_inputs, put_first(3), ORDER),
    (state_inputs, first_layer_without_h, STATES),
    (exported, lambda m: find(m, "h_n").input.__setitem__(2, "c_0"), OUTPUT.format("h_n")),
    (exported, lambda m: find(m, "c_n").input.__setitem__(1, "h_n_of_steps"), OUTPUT.format("c_n")),
    (exported, lambda m: find(m, "h_n").input.__setitem__(2, "h_n_of_steps"), OUTPUT.format("h_n")),
    (exported, constant("column", [0]), OUTPUT.format("h_n")),
    (exported, lambda m: find(m, "stepped").input.__setitem__(0, "rows"), OUTPUT.format("h_n")),
    (
        one_size,
        constant("zeros", np.ones((2, 3, H)), np.float32),
        "inputs or zeros as initial states",
    ),
    (bare, unread_input, "every graph input to be used, got unused inputs .'h_0'."),
    # attributes
    (bare, custom_domain, "LSTM nodes, and at most one Gemm, got 0 Gemm among .'custom.LSTM'"),
    (bare, attribute("hidden_size", 6), "hidden_size of LSTM 'y0' to be 7 like its weights, got 6"),
    (bare, attribute("direction", "bidirectional"), SHAPES),
    (one_size, attribute("direction", "forward"), SHAPES),
    (bare, attribute("direction", "Forward"), "direction of LSTM 'y0' to be forward, reverse or bidir"),
    (bare, attribute("direction", "reverse"), "a forward direction, as no module runs in reverse only"),
    (two_layers, attribute("direction", "reverse", 1), "the outputs of LSTM 'y0' to go on as"),
    (bare, attribute("clip", 50.0), "clip of LSTM 'y0' to be absent, or at least 87, got 50"),
    (bare, attribute("clip", float("nan")), "clip of LSTM 'y0' to be absent, or at least 87, got nan"),
    (bare, attribute("layout", 2), "layout of LSTM 'y0' to be 0 or 1, got 2"),
    (bare, attribute("activation_alpha", [0.5]), "activation_alpha of LSTM 'y0' to be absent"),
    (bare, attribute("activations", ["Sigmoid", "Tanh", "Tanh"] * 2), "activations of LSTM 'y0' to be"),
    (bare, attribute("activations", [b"\xff", b"Tanh", b"Tanh"]), "activations of LSTM 'y0' to be"),
    (bare, attribute("hidden_size", 7.0), CHECKED),
    (coupled, attribute("input_forget", 0), "layers of one kind, got LSTM 'y0' and LSTM 'y1'"),
    (classifier, alpha, r"alpha of Gemm 'scores' to be one of \(1.0,\), got nan"),
    # weights and types
    (bare, weight("W0", 4 * H, I), SHAPES),
    (bare, weight("R0", H), SHAPES),
    (bare, weight("R0"), SHAPES),
    (bare, weight("B0", 8 * H), SHAPES),
    (bare, weight("P0", 1, 1, 3 * H), SHAPES),
    (bare, weight("W0", 1, 4 * H, 0), SHAPES),
    (bare, weight("R0", 1, 0, 0), SHAPES),
    (bare, weight("W0", 0, 4 * H, I), SHAPES),
    (two_layers, weight("W1", 1, 4 * H, I), "2 layers, each fed by the one before"),
    (classifier, weight("bias", 1, 4), r"the Gemm to have a weight \[C, 7\] and a bias \[C\]"),
    (classifier, weight("bias", 4, dtype=np.float64), r"the Gemm to have a weight \[C, 7\] and a bias \[C\]"),
    (
        bare,
        weight("P0", 1, 3 * H, dtype=np.float64),
        MIXED + "DOUBLE",
    ),
    (
        bare,
        weight("W0", 1, 4 * H, I, dtype=np.complex64),
        MIXED + "COMPLEX64",
    ),
    (bare, lambda m: setattr(m.graph.initializer[0], "data_type", 99), MIXED[:-5]),
    (two_layers, first_layer_of_doubles, "layers of one kind, got LSTM 'y0' and LSTM 'y1'"),
    (bare, dtype("input", TensorProto.DOUBLE), FIRST),
    (bare, dtype("input", TensorProto.STRING), "graph input 'input' to be a tensor of floats or integers"),
    (bare, half_the_data, CHECKED),
    (bare, sparse, "constant weights at LSTM 'y0', got 'W0', computed"),
    (bare, default, FIRST),
    (bare, size(0, 0), "sizes of at least 1 in graph input 'input'"),
    (bare, size(1, -5), "sizes of at least 1 in graph input 'input'"),
    (bare, size(0, 2**62), "tensors of at most .* elements, got"),
    (bare, size(2, 6), FIRST),
    # the file
    (bare, lambda m: m.opset_import.__delitem__(0), CHECKED + ".*must specify opset_import"),
    (lambda: two_layers(7), opset(6), "one opset from 7 to .*, got .6."),
    (bare, opset(999), "one opset from 7 to .*, got .999."),
    (constant_nodes, function, FIRST),
    (two_layers, conditional, OUTPUT.format("output")),
    (bare, lambda m: m.graph.node.append(m.graph.node[0]), CHECKED),
    (bare, lambda m: m.graph.initializer.append(m.graph.initializer[0]), CHECKED),
    (bare, lambda m: m.graph.input.append(m.graph.input[0]), CHECKED),
    (constant_nodes, lambda m: find(m, "shape").attribute.pop(), OUTPUT.format("output")),
]


@pytest.mark.parametrize(("build", "change", "message"), FAULTS)
def test_refuses(build, change, message, tmp_path):
    model = build()
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="^path: expected " + message):
        from_onnx(tmp_path / "model.onnx")
