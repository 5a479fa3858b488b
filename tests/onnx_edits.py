"""Edits of ONNX models; most take parameters and return a function that edits a model."""

import numpy as np
from onnx import helper, numpy_helper
from onnx_graphs import lstms


def find(model, output):
    """Return the node with this output."""
    return next(node for node in model.graph.node if output in node.output)


def attribute(name, value, k=0):
    """Set an attribute of an LSTM node."""

    def change(model):
        node = lstms(model)[k]
        for old in [old for old in node.attribute if old.name == name]:
            node.attribute.remove(old)
        node.attribute.append(helper.make_attribute(name, value))

    return change


def constant(name, value, dtype=np.int64):
    """Set a constant."""

    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, dtype), name))

    return change


def weight(name, *shape, dtype=np.float32):
    """Give a weight another shape."""
    return constant(name, np.ones(shape), dtype)


def after(name, kind, integers=None, **attributes):
    """Insert a node before an output."""

    def change(model):
        outputs = find(model, name).output
        outputs[list(outputs).index(name)] = "before"
        inputs = ["before"]
        if integers is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.array(integers, np.int64), "integers"))
            inputs.append("integers")
        model.graph.node.append(helper.make_node(kind, inputs, [name], **attributes))

    return change


def slice_beyond(name, end, step=1):
    """Keep the first steps of an output."""

    def change(model):
        after(name, "Slice", [0])(model)
        bounds = {"end": end, "axis": 0, "step": step}
        for bound, value in bounds.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), bound))
        model.graph.node[-1].input.extend(bounds)

    return change


def node_input(k, place, name):
    """Set an input of an LSTM node."""
    return lambda model: lstms(model)[k].input.__setitem__(place, name)


def read_backwards(output):
    """Reverse the order of a node's inputs."""

    def change(model):
        names = find(model, output).input
        names[:] = list(names)[::-1]

    return change


def exchange(one, other):
    """Swap the outputs of two nodes."""

    def change(model):
        first, second = find(model, one), find(model, other)
        first.output[0], second.output[0] = other, one

    return change


def size(axis, n):
    """Declare a size of the input."""
    return lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[axis], "dim_value", n)


def dtype(values, kind):
    """Declare another type for the first graph input or output."""
    return lambda model: setattr(getattr(model.graph, values)[0].type.tensor_type, "elem_type", kind)


def opset(version):
    return lambda model: setattr(model.opset_import[0], "version", version)
