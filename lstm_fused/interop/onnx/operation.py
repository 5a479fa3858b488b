"""Reads an LSTM node: its attributes and weights, whose sizes and types must agree."""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from lstm_fused.errors import bad
from lstm_fused.interop.convert import Layer, reorder
from lstm_fused.interop.onnx.file import File, attributes

FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
}
SLOTS = {b"forward": (0,), b"reverse": (1,), b"bidirectional": (0, 1)}
ACTIVATIONS = ["sigmoid", "tanh", "tanh"]
OPERANDS = {"W": 1, "R": 2, "B": 3, "P": 7}  # and their positions among the inputs


class Operation(NamedTuple):
    """Attributes, sizes and dtype of an LSTM node.

    Args:
        node: the node.
        slots: its directions: 0 is forward, 1 reverse.
        I: features of its input.
        H: cells of each direction.
        dtype: dtype of its weights.
        coupled: whether f = 1 - i.
        layout: 1 if its inputs and outputs are batch-first.
        operands: names of the weights that it has.
    """

    node: NodeProto
    slots: tuple[int, ...]
    I: int
    H: int
    dtype: torch.dtype
    coupled: bool
    layout: int
    operands: tuple[str, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """Properties that all layers of a module share."""
        return self.H, self.dtype, self.coupled, self.operands

    def input(self, place: int) -> str:
        """The name of an input, empty if it is omitted."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def __str__(self) -> str:
        return f"LSTM {self.node.name!r}"


def read_operation(file: File, node: NodeProto) -> Operation:
    """Read an LSTM node, except for the values of its weights.

    Raises:
        ValueError: the node computes something an LSTM module does not, or its sizes disagree.
    """
    values = attributes(node)

    def check(name: str, right: bool, expected: str) -> None:
        if not right:
            raise bad("path", f"{name} of LSTM {node.name!r} to be {expected}", values.get(name, "none"))

    slots = SLOTS.get(values.get("direction", b"forward"), ())
    check("direction", bool(slots), "forward, reverse or bidirectional")
    D = len(slots)
    protos = {name: weight(file, node, place) for name, place in OPERANDS.items()}
    given = {name: proto for name, proto in protos.items() if proto is not None}
    shapes = {name: tuple(proto.dims) for name, proto in given.items()}
    H = shapes.get("R", (0,))[-1] if shapes.get("R") else 0
    I = shapes["W"][-1] if shapes.get("W") else 0
    expected = {"W": (D, 4 * H, I), "R": (D, 4 * H, H), "B": (D, 8 * H), "P": (D, 3 * H)}
    expected = {name: shape for name, shape in expected.items() if name in (*shapes, "W", "R")}
    if shapes != expected or min(I, H) < 1:
        sizes = "W (D, 4H, I), R (D, 4H, H), B (D, 8H) and P (D, 3H)"
        raise bad("path", f"{sizes} of LSTM {node.name!r} with D = {D} directions", shapes)
    types = {proto.data_type for proto in given.values()}
    if len(types) != 1 or not types <= FLOATS.keys():
        raise bad(
            "path", f"float16, float32 or float64 in all weights of LSTM {node.name!r}", type_names(types)
        )
    dtype = FLOATS[types.pop()]

    check("hidden_size", values.get("hidden_size", H) == H, f"{H} like its weights")
    functions = [name.decode(errors="replace").lower() for name in values.get("activations", [])]
    check("activations", functions in ([], ACTIVATIONS * D), f"Sigmoid, Tanh, Tanh, {D} times")
    for name in ("activation_alpha", "activation_beta"):
        check(name, not values.get(name), "absent")  # no sigmoid or tanh has one
    # Beyond this bound a sigmoid is 0 or 1 up to subnormal numbers, so the clip has no effect.
    bound = -math.log(torch.finfo(dtype).tiny)
    check("clip", values.get("clip", math.inf) >= bound, f"absent, or at least {bound:.0f}")
    check("input_forget", values.get("input_forget", 0) in (0, 1), "0 or 1")
    check("layout", values.get("layout", 0) in (0, 1), "0 or 1")
    coupled = values.get("input_forget", 0) == 1
    return Operation(node, slots, I, H, dtype, coupled, values.get("layout", 0), tuple(given))


def type_names(types: Collection[int]) -> str:
    """ONNX's names of element types."""
    known = TensorProto.DataType.items()
    return " and ".join(name for name, number in known if number in types) or "unknown types"


def weight(file: File, node: NodeProto, place: int) -> TensorProto | None:
    """An input of a node that must be a constant; None if it is omitted."""
    name = node.input[place] if place < len(node.input) else ""
    if name and name not in file.constants:
        computed = f"{name!r}, computed" if name not in file.inputs else f"{name!r}, a graph input"
        raise bad("path", f"constant weights at {node.op_type} {node.name!r}", computed)
    return file.constants[name] if name else None


def read_weights(file: File, layer: dict[int, Operation]) -> Layer:
    """The parameters of a layer, whose directions are in one node or two."""
    return [direction(file, layer[slot], layer[slot].slots.index(slot)) for slot in sorted(layer)]


def direction(file: File, operation: Operation, d: int) -> dict[str, Tensor]:
    """The parameters of one direction of a node."""
    W, R, B, P = (
        file.tensor(operation.input(place))[d] if name in operation.operands else None
        for name, place in OPERANDS.items()
    )
    assert W is not None and R is not None  # the operator requires them
    weights = {"weight_ih": gates(W, operation), "weight_hh": gates(R, operation)}
    if B is not None:
        weights |= zip(("bias_ih", "bias_hh"), (gates(b, operation) for b in B.chunk(2)), strict=True)
    if P is not None:
        p_i, p_o, p_f = P.chunk(3)
        weights["weight_peephole"] = torch.stack([-p_i, p_o] if operation.coupled else [p_i, p_f, p_o])
    return weights


def gates(rows: Tensor, operation: Operation) -> Tensor:
    """Rows of all gates in our order.

    ONNX couples f = 1 - i, ours i = 1 - f, so our f takes the negated weights of ONNX's i.
    """
    if not operation.coupled:
        return reorder(rows, "iofg", "ifgo")
    i, o, _, g = rows.chunk(4)
    return torch.cat([-i, g, o])
