"""ONNX graphs with LSTM nodes, made by hand as exporters make them, and what other programs compute of them."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

I, H = 5, 7
QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class Graph:
    """A graph that is being put together.

    Args:
        seed: of its weights.
        opset: of its operators.
    """

    def __init__(self, seed=0, opset=17):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes, self.inputs, self.outputs, self.constants = [], [], [], []

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def integers(self, name, *values):
        return self.constant(name, np.array(values, np.int64))

    def input(self, name, *dims, dtype=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, name, dtype=FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, None))

    def node(self, kind, inputs, *outputs, **attributes):
        domain = attributes.pop("domain", None)
        self.nodes.append(helper.make_node(kind, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def lstm(self, k, x, width=I, D=1, lengths="", h="", c="", bias=True, peephole=True, H=H, **attributes):
        """An LSTM node with weights of its own; its outputs are y{k}, h{k} and c{k}."""
        W, R, B, P = (
            self.constant(f"{name}{k}", self.rng.normal(scale=0.5, size=(D, *shape)).astype(np.float32))
            for name, *shape in (("W", 4 * H, width), ("R", 4 * H, H), ("B", 8 * H), ("P", 3 * H))
        )
        if D == 2:
            attributes["direction"] = "bidirectional"
        inputs = [x, W, R, B if bias else "", lengths, h, c, P if peephole else ""]
        while not inputs[-1]:
            inputs.pop()
        return self.node("LSTM", inputs, f"y{k}", f"h{k}", f"c{k}", **{"hidden_size": H} | attributes)

    def join(self, y, name, width=H):
        """[T, B, width] of Y."""
        steps = self.node("Transpose", [y], f"{name}_steps", perm=[0, 2, 1, 3])
        return self.node("Reshape", [steps, self.integers(f"{name}_shape", 0, 0, width)], name)

    def model(self, *outputs):
        for name in outputs:
            self.output(name)
        graph = helper.make_graph(self.nodes, "by hand", self.inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def compute(model, feed):
    """What onnxruntime makes of a model, or the standard's reference if it cannot run it.

    The reference knows neither lengths, nor coupled gates, nor a clip.
    """
    lstms = [node for node in model.graph.node if node.op_type == "LSTM"]
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), QUIET, providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, feed)
    except Exception:
        names = {attribute.name for node in lstms for attribute in node.attribute}
        if names & {"clip", "input_forget"} or any(len(node.input) > 4 and node.input[4] for node in lstms):
            raise
        outputs = ReferenceEvaluator(model).run(None, feed)
    return dict(zip([value.name for value in model.graph.output], map(torch.tensor, outputs), strict=True))


def load(path):
    return onnx.load(path)
