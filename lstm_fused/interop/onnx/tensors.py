"""The tensors of a graph by name, whose open sizes are primes."""

import math
from collections.abc import Iterator

import torch
from onnx import NodeProto, ValueInfoProto
from torch import Tensor

from lstm_fused.checks import bad
from lstm_fused.interop.onnx.file import File, attributes
from lstm_fused.interop.onnx.views import DTYPES, KNOWN, OPERATORS, Call, Value

OPEN = 1000  # sizes at most that a file leaves open
LARGEST = 2**60  # elements of a tensor: sizes and strides are 64 bits wide


class Tensors:
    """The tensors of a graph, as far as its nodes only move data.

    Args:
        file: the graph.
        least: where the primes begin.
    """

    def __init__(self, file: File, least: int) -> None:
        self.file = file
        self.primes = primes(least)
        self.open: dict[int, str] = {}  # the primes in use, and the name of the size that each stands for
        self.named: dict[str, int] = {}
        self.inputs: dict[str, Tensor] = {}  # graph inputs, by the origin of their views
        self.values: dict[str, Value] = {}

    def value(self, name: str) -> Value | None:
        """A tensor by name; None for the name of none."""
        if not name:
            return None
        if name not in self.values:
            if name in self.file.constants:
                self.values[name] = Value(KNOWN, self.file.tensor(name))
            elif name in self.file.inputs:
                origin = graph_input(name)
                self.inputs[origin] = self.input(self.file.inputs[name])
                self.values[name] = Value(origin, self.inputs[origin])
            else:
                self.values[name] = Value(f"{name!r}, which is no tensor")
        return self.values[name]

    def input(self, info: ValueInfoProto) -> Tensor:
        """A graph input, of which nothing but the type need be declared."""
        declared = info.type.tensor_type
        if not info.type.HasField("tensor_type") or declared.elem_type not in DTYPES:
            raise bad("path", f"graph input {info.name!r} to be a tensor of floats or integers", info.type)
        dtype = DTYPES[declared.elem_type]
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else self.size(dim.dim_param)
            for dim in declared.shape.dim
        ]
        if any(size < 1 for size in sizes):
            raise bad("path", f"sizes of 1 at least in graph input {info.name!r}", sizes)
        return self.source(sizes, dtype)

    def source(self, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """A tensor for others to be views of."""
        strides: list[int] = []
        stride = 1
        for size in reversed(sizes):
            strides.insert(0, stride)
            stride *= max(size, 2)  # a size of 1 leaves a gap, by which a transposition shows
        if stride > LARGEST:
            raise bad("path", f"tensors of {LARGEST} elements at most", sizes)
        return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")

    def size(self, name: str) -> int:
        """A prime for an open size, which may have a name that others have too."""
        if name in self.named:
            return self.named[name]
        if len(self.open) == OPEN:
            raise bad("path", f"{OPEN} open sizes at most", "more")
        size = next(self.primes)
        self.open[size] = name
        if name:
            self.named[name] = size
        return size

    def fits(self, size: int, expected: int) -> bool:
        """Whether a size is this one or may be."""
        return size == expected or size in self.open or expected in self.open

    def describe(self, value: Value | None) -> str:
        """What to say of a tensor that is not what it should be."""
        if value is None:
            return "none"
        if value.tensor is None:
            return value.origin
        shape = ", ".join(self.open.get(size, str(size)) or "?" for size in value.tensor.shape)
        return f"{value.origin} moved to ({shape})"

    def add(self, node: NodeProto, values: list[Value]) -> None:
        """Name the outputs of a node."""
        self.values |= dict(zip(node.output, values, strict=False))

    def move(self, kind: str, node: NodeProto) -> list[Value]:
        """The outputs of a node that only moves data; those of another are not understood."""
        inputs = [self.value(name) for name in node.input]
        unknown = next((value for value in inputs if value and value.tensor is None), None)
        if unknown is not None:
            return [unknown] * len(node.output)
        why = ""
        try:
            if kind in OPERATORS:
                return OPERATORS[kind](Call(inputs, attributes(node), len(node.output)))
        except Exception as error:  # PyTorch's or ours: whatever is wrong, the node is not understood
            why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return [Value(f"{name!r} of {kind}{why}") for name in node.output]


def graph_input(name: str) -> str:
    """The origin of an input of the graph."""
    return f"graph input {name!r}"


def primes(least: int) -> Iterator[int]:
    """The primes from a number on."""
    n = least
    while True:
        if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)):
            yield n
        n += 1
