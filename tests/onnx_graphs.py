"""Builds ONNX graphs with LSTM nodes and runs them with other programs."""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lstm_fused import SequenceClassifier

I, H = 5, 7
FLOAT, DOUBLE, INT32, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64
QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


class Graph:
    """Builder of a graph.

    Args:
        opset: opset of the operators.
        dtype: dtype of the floats.
    """

    def __init__(self, opset=17, dtype=np.float32):
        self.rng = np.random.default_rng(opset)
        self.opset, self.dtype = opset, dtype
        self.float = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes, self.inputs, self.constants = [], [], []

    def constant(self, name, values, dtype=np.int64):
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def input(self, name, *dims, dtype=None):
        self.inputs.append(helper.make_tensor_value_info(name, dtype or self.float, dims))
        return name

    def node(self, kind, inputs, *outputs, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, outputs, outputs[0], **attributes))
        return outputs[0]

    def with_integers(self, kind, x, output, **integers):
        """Add a node whose integers are attributes in old opsets and inputs in new ones."""
        if self.opset < {"Slice": 10, "Squeeze": 13, "Unsqueeze": 13, "Split": 13, "Reshape": 5}[kind]:
            return self.node(kind, [x], output, **integers)
        names = [self.constant(f"{output}_{name}", values) for name, values in integers.items()]
        return self.node(kind, [x, *names], output)

    def weights(self, k, width=I, D=1, H=H):
        """Add the weights of an LSTM node: W, R, B and P."""
        shapes = {"W": (4 * H, width), "R": (4 * H, H), "B": (8 * H,), "P": (3 * H,)}
        return [
            self.constant(f"{name}{k}", self.rng.normal(scale=0.5, size=(D, *shape)), self.dtype)
            for name, shape in shapes.items()
        ]

    def lstm(self, k, x, width=I, D=1, lengths="", h="", c="", bias=True, peephole=True, **attributes):
        """Add an LSTM node with its weights; the outputs are y{k}, h{k} and c{k}."""
        W, R, B, P = self.weights(k, width, D)
        if D == 2:
            attributes["direction"] = "bidirectional"
        inputs = [x, W, R, B if bias else "", lengths, h, c, P if peephole else ""]
        while not inputs[-1]:
            inputs.pop()
        return self.node("LSTM", inputs, f"y{k}", f"h{k}", f"c{k}", **{"hidden_size": H} | attributes)

    def join(self, y, name, width=H):
        """Transpose and reshape Y to [T, B, width]."""
        steps = self.node("Transpose", [y], f"{name}_steps", perm=[0, 2, 1, 3])
        return self.with_integers("Reshape", steps, name, shape=[0, 0, width])

    def model(self, *outputs):
        values = [helper.make_tensor_value_info(name, self.float, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "by hand", self.inputs, values, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def lstms(model):
    return [node for node in model.graph.node if node.op_type == "LSTM"]


def compute(model, feed):
    """Run a model with onnxruntime, or with the onnx package's reference evaluator if onnxruntime cannot.

    The reference evaluator has no lengths, coupled gates or clip.
    """
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), QUIET, providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, feed)
    except Exception:
        names = {attribute.name for node in lstms(model) for attribute in node.attribute}
        if names & {"clip", "input_forget"} or any(len(n.input) > 4 and n.input[4] for n in lstms(model)):
            raise
        outputs = ReferenceEvaluator(model).run(None, feed)
    return dict(zip([value.name for value in model.graph.output], map(torch.tensor, outputs), strict=True))


def draw(model, T, B):
    """Draw inputs for a model, with these sizes or the declared ones."""
    sizes, constants = {"T": T, "B": B}, {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims = [dim.dim_value or sizes.get(dim.dim_param, B) for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        drawn = np.random.randint(1, T + 1, dims) if value.name == "lengths" else np.random.normal(size=dims)
        if value.name not in constants:
            feed[value.name] = drawn.astype(dtype)
    return feed


def differs(module, model, T, B):
    """Return the largest difference between a module and a model, on random inputs of these sizes.

    An output of the model is matched by the first letter of its name; others match the nearest output.
    """
    feed = draw(model, T, B)
    theirs = compute(model, feed)
    given = {name: torch.tensor(value) for name, value in feed.items()}
    states = [[value for name, value in given.items() if name.startswith(state)] for state in "hc"]
    with torch.no_grad():
        if isinstance(module, SequenceClassifier):
            ours = {"s": module(given["input"], given.get("lengths"))}
        else:
            h, c = (torch.cat(values) if values else None for values in states)
            zeros = [torch.zeros_like(value) for value in (h, c) if value is not None]
            hx = (zeros[0] if h is None else h, zeros[0] if c is None else c) if zeros else None
            y, (h_n, c_n) = module(given["input"], hx, given.get("lengths"))
            ours = {"o": y, "y": y, "x": y, "h": h_n, "c": c_n}
    distances = []
    for name, value in theirs.items():
        if value.dim() == 4:  # Y itself
            value = value.squeeze(2 if module.batch_first else 1)
        own = ours.get(name[0])
        alike = [own] if own is not None and own.shape == value.shape else list(ours.values())
        near = [(value - one).abs().nan_to_num(9e9).max().item() for one in alike if one.shape == value.shape]
        distances.append(min(near, default=9e9))
    return max(distances)


# Models that are read.


def two_layers(opset=17, layout=0, dtype=np.float32, h="h_0", c="c_0"):
    """Two layers as PyTorch exports them: states sliced from inputs, outputs squeezed, two Concat."""
    graph = Graph(opset, dtype)
    x = graph.input("input", *("BT" if layout else "TB"), I)
    for name in (h, c):
        graph.input(name, 2, "B", H)
    options = {"layout": 1} if layout else {}

    def swap(name):
        return graph.node("Transpose", [name], f"{name}_swapped", perm=[1, 0, 2]) if layout else name

    for k in (0, 1):
        first = {
            state: swap(
                graph.with_integers("Slice", name, f"{state}_first{k}", starts=[k], ends=[k + 1], axes=[0])
            )
            for state, name in (("h", h), ("c", c))
        }
        graph.lstm(k, x, (I, H)[k], **first, **options)
        x = graph.with_integers("Squeeze", f"y{k}", f"x{k + 1}", axes=[2 if layout else 1])
    graph.node("Identity", [x], "output")
    for state in "hc":
        graph.node("Concat", [swap(f"{state}0"), swap(f"{state}1")], f"{state}_n", axis=0)
    return graph.model("output", "h_n", "c_n")


def two_nodes():
    """A bidirectional layer made of a forward and a reverse node."""
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    lengths = graph.node("Cast", [graph.input("lengths", "B", dtype=INT64)], "n", to=INT32)
    graph.lstm("r", x, lengths=lengths, direction="reverse")
    graph.lstm("f", x, lengths=lengths)
    parts = [graph.with_integers("Squeeze", name, f"{name}_squeezed", axes=[1]) for name in ("yf", "yr")]
    graph.node("Concat", parts, "output", axis=2)
    graph.node("Concat", ["hf", "hr"], "h_n", axis=0)
    graph.node("Concat", ["cf", "cr"], "c_n", axis=0)
    return graph.model("output", "h_n", "c_n")


def one_size(lengths=None, B=3):
    """A graph for T = 6 and one B, with these lengths and zero initial states."""
    graph = Graph()
    x = graph.node("Transpose", [graph.input("input", B, 6, I)], "steps", perm=[1, 0, 2])
    n = "" if lengths is None else graph.constant("n", lengths, np.int32)
    graph.lstm(0, x, D=2, lengths=n, h=graph.constant("zeros", np.zeros((2, B, H)), np.float32))
    graph.node("Transpose", [graph.join("y0", "joined", 2 * H)], "output", perm=[1, 0, 2])
    graph.node("Identity", ["c0"], "c_n")
    return graph.model("output", "c_n")


def made_of_sizes():
    """Lengths of T and zero states, computed from the shape of the input."""
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    graph.node("Shape", [x], "sizes")
    for name, place in (("T", 0), ("B", 1)):
        graph.node("Gather", ["sizes", graph.constant(f"{name}_place", [place])], name, axis=0)
    graph.node("Expand", ["T", "B"], "all")
    graph.node("Cast", ["all"], "lengths", to=INT32)
    one, wide = graph.constant("one", [1]), graph.constant("wide", [H])
    graph.node("Concat", [one, "B", wide], "rows", axis=0)
    graph.node("ConstantOfShape", ["rows"], "zeros")
    graph.lstm(0, x, lengths="lengths", h="zeros", c="zeros")
    graph.join("y0", "output")
    return graph.model("output", "h0")


def bare(D=1, **attributes):
    """An LSTM node whose outputs are the graph's outputs."""
    graph = Graph()
    graph.lstm(0, graph.input("input", *("BT" if "layout" in attributes else "TB"), I), D=D, **attributes)
    return graph.model("y0") if "layout" in attributes else graph.model("y0", "h0", "c0")


def coupled(D=1, L=2, bias=True, peephole=True):
    """Layers with coupled gates, f = 1 - i."""
    graph = Graph()
    x, width = graph.input("input", "T", "B", I), I
    for k in range(L):
        graph.lstm(k, x, width, D=D, bias=bias, peephole=peephole, input_forget=1)
        x, width = graph.join(f"y{k}", f"x{k}", D * H), D * H
    for state in "hc":
        graph.node("Concat", [f"{state}{k}" for k in range(L)], f"{state}_n", axis=0)
    return graph.model(x, "h_n", "c_n")


def state_inputs():
    """Two layers with separate state inputs."""
    graph = Graph()
    x = graph.input("input", "T", "B", I)
    names = [graph.input(name, 1, "B", H) for name in ("h_a", "c_a", "h_b", "c_b")]
    for k in (0, 1):
        graph.lstm(k, x, (I, H)[k], h=names[2 * k], c=names[2 * k + 1])
        x = graph.join(f"y{k}", f"x{k}")
    return graph.model(x)


def weights_as_inputs():
    """Weights that are graph inputs with defaults."""
    graph = Graph()
    graph.lstm(0, graph.input("input", "T", "B", I), activations=["sigmoid", "TANH", "tanh"], clip=1e9)
    for tensor in graph.constants:
        graph.input(tensor.name, *tensor.dims)
    return graph.model("y0")


def constant_nodes():
    """Integers given by every kind of Constant node."""
    graph = Graph()
    x = graph.input("input", "B", "T", I)
    graph.node("Transpose", [x], "x", perm=[1, 0, 2])
    value = numpy_helper.from_array(np.array([0, 0, 2 * H]))
    graph.node("Constant", [], "shape", value=value)
    graph.node("Constant", [], "first", value_int=0)
    graph.node("Constant", [], "axes", value_ints=[0])
    graph.lstm(0, "x", D=2)
    graph.node("Transpose", ["y0"], "steps", perm=[0, 2, 1, 3])
    graph.node("Reshape", ["steps", "shape"], "joined")
    graph.node("Unsqueeze", ["joined", "axes"], "more")
    graph.node("Gather", ["more", "first"], "fewer", axis=0)
    graph.node("Transpose", ["fewer"], "output", perm=[1, 0, 2])
    return graph.model("output", "h0")


def classifier():
    """A Gemm over the last state of two layers, as PyTorch exports h_n[-1]."""
    graph = Graph()
    graph.node("Transpose", [graph.input("input", "B", "T", I)], "x0", perm=[1, 0, 2])
    for k in (0, 1):
        graph.lstm(k, f"x{k}", (I, H)[k])
        graph.with_integers("Squeeze", f"y{k}", f"x{k + 1}", axes=[1])
    graph.node("Concat", ["h0", "h1"], "h_n", axis=0)
    graph.node("Gather", ["h_n", graph.constant("last", -1)], "h_last", axis=0)
    for name, *shape in (("weight", H, 4), ("bias", 4)):
        graph.constant(name, graph.rng.normal(size=shape), np.float32)
    graph.node("Gemm", ["h_last", "weight", "bias"], "scores")
    return graph.model("scores")
