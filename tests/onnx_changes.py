"""Random changes of ONNX models: attributes, names, sizes, types, constants, nodes and bytes."""

import copy

import numpy as np
from onnx import TensorProto, helper, numpy_helper

STRINGS = [b"forward", b"reverse", b"bidirectional", b"Sigmoid", b"Tanh", b"Relu", b"tanh", b"\xff"]
NUMBERS = [-(2**63), -3, -2, -1, 0, 1, 2, 3, 4, 7, 9, 14, 2**31 - 1, 2**63 - 1]
FLOATS = [float("nan"), float("inf"), -1.0, 0.0, 0.5, 1.0, 50.0, 1e9]
KINDS = [
    *("Identity", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Split", "Gather", "Expand"),
    *("Concat", "Shape", "ConstantOfShape", "Cast", "Mul", "Where", "Relu", "Gemm", "LSTM", "If", "Flatten"),
]
ATTRIBUTES = {
    "clip": FLOATS,
    "input_forget": [0, 1, 2],
    "layout": [0, 1, 2],
    "direction": STRINGS,
    "hidden_size": NUMBERS,
    "activations": [["sigmoid", "TANH", "Tanh"], ["Sigmoid", "Tanh", "Relu"], ["Tanh"] * 3, ["Tanh"] * 6],
    "activation_alpha": [[0.5], [1.0, 2.0]],
    "perm": [[1, 0, 2], [0, 2, 1], [0, 2, 1, 3], [0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3], [0], [0, 0, 1]],
    "axis": NUMBERS,
    "axes": [[0], [1], [2], [-1], [0, 1], []],
    "allowzero": [0, 1],
    "transB": [0, 1],
    "alpha": FLOATS,
    "to": [TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL, 99],
}


def change_attribute(model, pick):
    node = pick.choice(model.graph.node)
    name = pick.choice([*ATTRIBUTES, *(attribute.name for attribute in node.attribute)])
    old = [attribute for attribute in node.attribute if attribute.name == name]
    for attribute in old:
        node.attribute.remove(attribute)
    if pick.random() < 0.8 and name in ATTRIBUTES:
        node.attribute.append(
            helper.make_attribute(name, pick.choice([v for v in ATTRIBUTES[name] if v != []]))
        )


def names_of(model):
    made = [name for node in model.graph.node for name in node.output]
    given = [value.name for value in model.graph.input] + [tensor.name for tensor in model.graph.initializer]
    return [*made, *given]


def change_input(model, pick):
    node = pick.choice(model.graph.node)
    if node.input:
        node.input[pick.randrange(len(node.input))] = pick.choice([*names_of(model), ""])


def swap_inputs(model, pick):
    one, other = pick.choice(model.graph.node), pick.choice(model.graph.node)
    if one.input and other.input:
        a, b = pick.randrange(len(one.input)), pick.randrange(len(other.input))
        one.input[a], other.input[b] = other.input[b], one.input[a]


def swap_outputs(model, pick):
    one, other = pick.choice(model.graph.node), pick.choice(model.graph.node)
    if one.output and other.output:
        a, b = pick.randrange(len(one.output)), pick.randrange(len(other.output))
        one.output[a], other.output[b] = other.output[b], one.output[a]


def change_kind(model, pick):
    pick.choice(model.graph.node).op_type = pick.choice(KINDS)


def change_domain(model, pick):
    pick.choice(model.graph.node).domain = pick.choice(["ai.onnx", "custom", "ai.onnx.ml"])
    model.opset_import.append(helper.make_opsetid(pick.choice(["custom", "ai.onnx"]), 17))


def change_nodes(model, pick):
    nodes = model.graph.node
    if pick.random() < 0.3:
        nodes.add().CopyFrom(pick.choice(nodes))
    elif pick.random() < 0.5:
        nodes.remove(pick.choice(nodes))
    else:
        shuffled = [copy.deepcopy(node) for node in nodes]
        pick.shuffle(shuffled)
        del nodes[:]
        nodes.extend(shuffled)


def insert_node(model, pick):
    """Insert a node before an input of a node or before an output of the graph."""
    nodes = model.graph.node
    place = pick.randrange(len(nodes) + 1)
    reader = nodes[place].input if place < len(nodes) else None
    if reader is None:
        end = pick.choice(model.graph.output)
        before = end.name
    else:
        if not reader:
            return
        slot = pick.randrange(len(reader))
        before = reader[slot]
    number = pick.randrange(10**9)
    kind = pick.choice(
        [
            "Transpose",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Gather",
            "Concat",
            "Identity",
            "Relu",
            "Split",
            "Expand",
            "Cast",
        ]
    )
    extra, attributes = [], {}

    def numbers(values):
        name = f"numbers{number}_{len(extra)}"
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        extra.append(name)

    if kind == "Transpose":
        rank = pick.choice([2, 3, 3, 4])
        attributes["perm"] = pick.sample(range(rank), rank)
    elif kind == "Reshape":
        numbers([pick.choice([0, -1, 1, 2, 3, 6, 7, 14]) for _ in range(pick.choice([2, 3, 3, 4]))])
    elif kind in ("Squeeze", "Unsqueeze"):
        numbers([pick.choice([0, 1, 2, -1])])
    elif kind == "Slice":
        for values in (
            [0, 1, -1, -2, 2**63 - 1],
            [1, 2, 3, 1000, 2**31 - 1, 2**63 - 1, -1],
            [0, 1, 2],
            [1, -1, 2],
        ):
            numbers([pick.choice(values)])
    elif kind == "Gather":
        numbers(pick.choice([0, 1, -1, [0], [1, 0], [0, 1]]))
        attributes["axis"] = pick.choice([0, 1, 2])
    elif kind == "Concat":
        extra.append(pick.choice([before, *names_of(model)]))
        attributes["axis"] = pick.choice([0, 1, 2])
    elif kind == "Expand":
        numbers(pick.choice([[1], [2, 1, 1], [1, 3, 1], [1, 1]]))
    elif kind == "Cast":
        attributes["to"] = pick.choice(ATTRIBUTES["to"])
    outputs = [f"new{number}"] if kind != "Split" else [f"new{number}", f"other{number}"]
    if kind == "Split":
        attributes["axis"] = pick.choice([0, 1, 2])
    node = helper.make_node(kind, [before, *extra], outputs, **attributes)
    if reader is None:
        for other in nodes:
            for n, name in enumerate(other.output):
                if name == before:
                    other.output[n] = node.input[0] = f"old{number}"
            for n, name in enumerate(other.input):
                if name == before:
                    other.input[n] = f"old{number}"
        node.output[0] = before
        nodes.append(node)
    else:
        reader[slot] = outputs[0]
        nodes.insert(place, node)


def change_constant(model, pick):
    tensors = [
        *model.graph.initializer,
        *(a.t for node in model.graph.node for a in node.attribute if a.t.dims),
    ]
    if not tensors:
        return
    tensor = pick.choice(tensors)
    what = pick.randrange(6)
    if what == 0 and tensor.dims:
        dims = list(tensor.dims)
        pick.shuffle(dims)
        tensor.dims[:] = dims
    elif what == 1:
        tensor.data_type = pick.choice([1, 2, 6, 7, 9, 10, 11, 14, 16, 99])
    elif what == 2:
        tensor.raw_data = tensor.raw_data[: pick.randrange(len(tensor.raw_data) + 1)]
    elif what == 3:
        tensor.name = pick.choice(names_of(model))
    else:
        array = numpy_helper.to_array(tensor)
        changed = {
            0: lambda: array.T,
            1: lambda: np.flip(array),
            2: lambda: array * 0 + pick.choice(NUMBERS[1:-2]),
            3: lambda: array.astype(pick.choice([np.float64, np.int64, np.int32, np.complex64, np.float16])),
            4: lambda: np.concatenate([array.ravel(), array.ravel()]),
            5: lambda: array[..., None],
        }[pick.randrange(6)]()
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(changed.astype(changed.dtype)), tensor.name)
        )


def change_values(model, pick):
    """Change the declarations of inputs and outputs."""
    values = pick.choice([model.graph.input, model.graph.output])
    value = pick.choice(values)
    dims = value.type.tensor_type.shape.dim
    what = pick.randrange(7)
    if what == 0 and dims:
        pick.choice(dims).dim_value = pick.choice([-1, 0, 1, 2, 3, 5, 7, 2**40, 2**62])
    elif what == 1 and dims:
        pick.choice(dims).dim_param = pick.choice(["T", "B", "N"])
    elif what == 2:
        value.type.tensor_type.elem_type = pick.choice([1, 6, 7, 10, 11, 14, 15])
    elif what == 3:
        value.type.tensor_type.ClearField("shape")
    elif what == 4:
        value.name = pick.choice(names_of(model))
    elif what == 5:
        shuffled = [copy.deepcopy(value) for value in values]
        pick.shuffle(shuffled)
        del values[:]
        values.extend(shuffled)
    else:
        values.remove(value)


def change_versions(model, pick):
    if pick.random() < 0.2:
        del model.opset_import[:]
    else:
        model.opset_import[0].version = pick.choice([*range(5, 27), 99])
    if pick.random() < 0.2:
        model.ir_version = pick.choice([1, 3, 4, 7, 10, 99])


def give_default(model, pick):
    """Also make a constant a graph input, or remove it from the graph inputs."""
    if pick.random() < 0.5 and model.graph.initializer:
        tensor = pick.choice(model.graph.initializer)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    else:
        value = pick.choice(model.graph.input)
        shape = [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
        integer = value.type.tensor_type.elem_type != 1
        array = np.full(shape, 6, np.int32) if integer else np.zeros(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))


def change_bytes(data, pick):
    data = bytearray(data)
    for _ in range(pick.choice([1, 1, 3])):
        place = pick.randrange(len(data))
        what = pick.randrange(3)
        if what == 0:
            data[place] = pick.randrange(256)
        elif what == 1:
            del data[place : place + pick.choice([1, 4, 100])]
        else:
            data[place:place] = bytes(pick.randrange(256) for _ in range(pick.choice([1, 4])))
        if not data:
            break
    return bytes(data)


CHANGES = [
    *(change_attribute, change_attribute, change_input, change_input, swap_inputs, swap_outputs, change_kind),
    *(change_domain, change_nodes, insert_node, insert_node, insert_node, change_constant, change_constant),
    *(change_values, change_values, change_versions, give_default),
]


def mutant(models, pick):
    """Return the bytes of a changed model."""
    model = copy.deepcopy(pick.choice(models))
    if pick.random() < 0.1:
        return change_bytes(model.SerializeToString(), pick)
    for _ in range(pick.choice([1, 1, 1, 2, 3])):
        for _ in range(10):
            changed = copy.deepcopy(model)
            try:
                pick.choice(CHANGES)(changed, pick)
            except Exception:
                continue  # the change does not apply to this model
            model = changed
            break
    return model.SerializeToString()
