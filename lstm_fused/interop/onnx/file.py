"""Loads an ONNX file and validates it with the onnx checker."""

import os
from typing import Any

import numpy as np
import onnx
import torch
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    defs,
    external_data_helper,
    helper,
    numpy_helper,
)
from torch import Tensor

from lstm_fused.errors import bad

STANDARD = ("", "ai.onnx")  # the two names of the standard domain
OLDEST_OPSET = 7  # first opset with the current LSTM operator
NUMBERS = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}  # attributes of Constant nodes


class File:
    """An ONNX file: the nodes that its outputs depend on, in topological order, and its constants.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not an ONNX file, or its opset is not supported.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise bad("path", "the path of an ONNX file", repr(path))
        model = load(path)
        graph = model.graph
        self.folder = os.path.dirname(os.path.abspath(os.fspath(path)))
        self.opset = opset(model)
        self.functions = {(function.domain, function.name) for function in model.functions}
        self.constants = constants(graph)
        # An initializer with the name of an input is the input's default.
        self.inputs = {value.name: value for value in graph.input if value.name not in self.constants}
        self.outputs = {value.name: value for value in graph.output}
        if not self.outputs or len(self.outputs) < len(graph.output):
            raise bad("path", "outputs of different names", [value.name for value in graph.output])
        self.nodes: list[NodeProto] = []
        needed = set(self.outputs)
        for node in reversed(graph.node):
            if not needed.isdisjoint(name for name in node.output if name):
                self.nodes.append(node)
                needed.update(node.input)
        self.nodes.reverse()
        unread = [name for name in self.inputs if name not in needed]
        if unread:
            raise bad("path", "every graph input to be used", f"unused inputs {unread}")

    def of(self, kind: str) -> list[NodeProto]:
        """The nodes of a standard operator."""
        return [node for node in self.nodes if self.kind(node) == kind]

    def kind(self, node: NodeProto) -> str:
        """The name of a node's operator, with its domain unless that is the standard one."""
        ours = (node.domain, node.op_type) in self.functions or node.overload
        return node.op_type if node.domain in STANDARD and not ours else f"{node.domain}.{node.op_type}"

    def tensor(self, name: str) -> Tensor:
        """The values of a constant."""
        proto = self.constants[name]
        try:
            array = numpy_helper.to_array(proto, self.folder)
            tensor = torch.tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
        except Exception as error:  # its bytes, sizes and type are unchecked
            raise bad("path", f"constant {name!r} with data of the declared type and size", error) from None
        if tensor.shape != tuple(proto.dims):
            raise bad("path", f"constant {name!r} of shape {tuple(proto.dims)}", tuple(tensor.shape))
        return tensor


def load(path: str | os.PathLike[str]) -> ModelProto:
    """Load a model that passes the onnx checker; external data stays in its files."""
    try:
        model = onnx.load(path, load_external_data=False)
        declare_ranks(model.graph)
        tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
        external = any(map(external_data_helper.uses_external_data, tensors))
        onnx.checker.check_model(os.fspath(path) if external else model)
    except OSError:
        raise
    except Exception as error:  # protobuf's and the checker's errors share no base class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise bad("path", "a valid ONNX file", f"{type(error).__name__}: {' '.join(lines)}") from error
    return model


def declare_ranks(graph: GraphProto) -> None:
    """Give inputs of unknown rank the rank that a module's input has; the checker requires one."""
    for value in (*graph.input, *graph.output):
        declared = value.type.tensor_type
        if value.type.HasField("tensor_type") and not declared.HasField("shape"):
            integer = declared.elem_type in (TensorProto.INT32, TensorProto.INT64)
            declared.shape.dim.extend(TensorShapeProto.Dimension() for _ in range(1 if integer else 3))


def opset(model: ModelProto) -> int:
    """The opset version of the standard operators."""
    versions: list[int] = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    newest = defs.onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        raise bad("path", f"one opset from {OLDEST_OPSET} to {newest}", versions or "none")
    return versions[0]


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers and the outputs of Constant nodes, by name."""
    named = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            for name, value in attributes(node).items():
                if name == "value":
                    named[node.output[0]] = value
                elif name in NUMBERS:
                    named[node.output[0]] = numpy_helper.from_array(np.array(value, NUMBERS[name]))
    return named


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
