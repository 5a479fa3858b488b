"""`from_onnx`: a module from an ONNX file whose graph is a stack of LSTM nodes."""

import os
from itertools import pairwise

import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from lstm_fused.checks import bad
from lstm_fused.classifier import SequenceClassifier
from lstm_fused.convert import Layer, reorder, stack
from lstm_fused.module import LSTM

ACTIVATIONS = [b"Sigmoid", b"Tanh", b"Tanh"]
# The attributes of the operators that compute, and the values that can be read; None: any.
ATTRIBUTES: dict[str, dict[str, tuple[object, ...] | None]] = {
    "LSTM": {
        "hidden_size": None,
        "direction": (b"forward", b"bidirectional"),
        "activations": (ACTIVATIONS, ACTIVATIONS * 2),
        "input_forget": (0,),
        "layout": (0,),
    },
    "Gemm": {"alpha": (1.0,), "beta": (1.0,), "transA": (0,), "transB": (0, 1)},
}
PASSED = frozenset({"Identity", "Reshape", "Squeeze", "Transpose"})  # between layers
SPREAD = PASSED | {"Expand", "Slice", "Split", "Unsqueeze"}  # from all initial states to those of a layer

Path = list[tuple[str, list[int]]]  # the operators that data passes, and how each permutes its dimensions
BATCH_FIRST: Path = [("Transpose", [1, 0, 2])]
JOINED: Path = [("Transpose", [0, 2, 1, 3]), ("Reshape", [])]  # from [T, D, B, H] to [T, B, D * H]
SQUEEZED: Path = [("Squeeze", [])]  # the same for one direction
LAST: Path = [("Squeeze", [])]  # from [1, B, H] to [B, H]


class Graph:
    """A file that is being read.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.sources = {name: node for node in self.nodes for name in node.output}
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def of(self, kind: str) -> list[NodeProto]:
        """The nodes of one operator."""
        return [node for node in self.nodes if node.op_type == kind]

    def weight(self, node: NodeProto, place: int) -> Tensor | None:
        """An input of a node that must be a constant; None if it is absent."""
        name = node.input[place] if place < len(node.input) else ""
        if name and name not in self.constants:
            raise bad("path", f"constant weights at {node.op_type} {node.name!r}", f"{name!r}, computed")
        return torch.tensor(numpy_helper.to_array(self.constants[name])) if name else None

    def trace(self, name: str, through: frozenset[str] = PASSED) -> tuple[str, Path]:
        """Where data was computed or given, and what it has passed since."""
        path: Path = []
        while name in self.sources and self.sources[name].op_type in through:
            node = self.sources[name]
            perm = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
            path.insert(0, (node.op_type, perm[0] if perm else []))
            name = node.input[0]
        return name, [step for step in path if step[0] != "Identity"]

    def parts(self, name: str) -> list[str]:
        """Where the parts were computed that are put together in an output of the graph."""
        source, _ = self.trace(name)
        node = self.sources.get(source)
        if node is None or node.op_type not in ("Concat", "Where"):
            return [source]
        inputs = node.input[1:2] if node.op_type == "Where" else node.input  # `export` says why Where
        return [part for piece in inputs for part in self.parts(piece)]


def from_onnx(path: str | os.PathLike[str], *, engine: str | None = None) -> LSTM | SequenceClassifier:
    """Read a module from an ONNX file whose graph is a stack of LSTM nodes, written here or elsewhere.

    Args:
        path: the file.
        engine: as for `lstm_fused.LSTM`.

    Returns:
        An `LSTM`, or a `SequenceClassifier` where a Gemm node reads the last state. Lengths and initial
        states are arguments of its call, whether or not the graph takes them.

    Raises:
        ValueError: the graph computes something else; the message says what.
    """
    graph = Graph(path)
    layers, heads = graph.of("LSTM"), graph.of("Gemm")
    if not layers or len(heads) > 1:
        kinds = sorted({node.op_type for node in graph.nodes})
        raise bad("path", "LSTM nodes, and one Gemm at most", f"{len(heads)} Gemm among {kinds}")
    computed = {name for node in (*layers, *heads) for name in node.output}
    for output in graph.outputs:
        if not computed.issuperset(graph.parts(output)):
            raise bad("path", f"output {output!r} to be of LSTM nodes or a Gemm", graph.parts(output))
    for node in (*layers, *heads):
        check_attributes(node)
    batch_first = check_paths(graph, layers)
    lstm = stack([read_layer(graph, node) for node in layers], batch_first, engine)
    return classifier(graph, heads[0], layers[-1], lstm) if heads else lstm


def check_attributes(node: NodeProto) -> None:
    """Check that a node computes nothing but what ours do."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        values = ATTRIBUTES[node.op_type].get(attribute.name, ())
        if values is not None and value not in values:
            expected = " or ".join(map(str, values)) or "absent"
            raise bad("path", f"{attribute.name} of {node.op_type} {node.name!r} to be {expected}", value)


def check_paths(graph: Graph, layers: list[NodeProto]) -> bool:
    """Check that layers read each other as they do in `LSTM`; whether the graph is batch-first."""
    source, entrance = graph.trace(layers[0].input[0])
    if source not in graph.inputs or entrance not in ([], BATCH_FIRST):
        raise bad("path", "the first LSTM to read a graph input [T, B, I] or [B, T, I]", (source, entrance))
    paths: list[tuple[NodeProto, tuple[str, Path], Path]]
    paths = [(before, graph.trace(after.input[0]), []) for before, after in pairwise(layers)]
    ends = [(layers[-1], graph.trace(output), entrance) for output in graph.outputs]
    paths += [end for end in ends if end[1][0] == layers[-1].output[0]]
    for node, (source, path), end in paths:
        joints = [JOINED + end] if is_bidirectional(node) else [JOINED + end, SQUEEZED + end]
        if source != node.output[0] or path not in joints:
            raise bad("path", f"the outputs of LSTM {node.name!r} to go on as [T, B, D * H]", (source, path))
    return entrance == BATCH_FIRST


def read_layer(graph: Graph, node: NodeProto) -> Layer:
    """The parameters of an LSTM node."""
    W, R, B, P = (graph.weight(node, place) for place in (1, 2, 3, 7))
    for name in node.input[5:7]:
        if name and not is_given_or_zero(graph, graph.trace(name, SPREAD)[0]):
            raise bad("path", f"inputs or zeros as initial states of LSTM {node.name!r}", repr(name))
    assert W is not None and R is not None  # the operator requires them
    layer = []
    for d in range(len(W)):
        weights = {"weight_ih": reorder(W[d], "iofg", "ifgo"), "weight_hh": reorder(R[d], "iofg", "ifgo")}
        if B is not None:
            names = ("bias_ih", "bias_hh")
            weights |= {n: reorder(b, "iofg", "ifgo") for n, b in zip(names, B[d].chunk(2), strict=True)}
        if P is not None:
            weights["weight_peephole"] = reorder(P[d], "iof", "ifo")
        layer.append(weights)
    return layer


def classifier(graph: Graph, head: NodeProto, last: NodeProto, lstm: LSTM) -> SequenceClassifier:
    """The classifier of which this is the LSTM."""
    source, path = graph.trace(head.input[0])
    if (source, path) != (last.output[1], LAST) or lstm.bidirectional or not lstm.batch_first:
        raise bad(
            "path", "the Gemm to read Y_h of a last LSTM that is forward and batch-first", (source, path)
        )
    weight, bias = graph.weight(head, 1), graph.weight(head, 2)
    if weight is None or bias is None:
        raise bad("path", "the Gemm to have a weight and a bias", list(head.input))
    if not any(attribute.name == "transB" and attribute.i for attribute in head.attribute):
        weight = weight.T
    model = SequenceClassifier(
        lstm.input_size, lstm.hidden_size, lstm.num_layers, len(weight), peephole=lstm.peephole
    ).to(weight.dtype)
    model.lstm = lstm
    model.head.load_state_dict({"weight": weight, "bias": bias})
    return model


def is_bidirectional(node: NodeProto) -> bool:
    """Whether an LSTM node runs both ways."""
    return any(
        attribute.name == "direction" and attribute.s == b"bidirectional" for attribute in node.attribute
    )


def is_given_or_zero(graph: Graph, name: str) -> bool:
    """Whether initial states are inputs of the graph or zeros, rather than what a module cannot keep."""
    if name in graph.constants:
        return not numpy_helper.to_array(graph.constants[name]).any()
    node = graph.sources.get(name)
    if node is None or node.op_type != "ConstantOfShape":
        return name in graph.inputs
    return not any(numpy_helper.to_array(value.t).any() for value in node.attribute)
