"""The tensors of a graph by name, with primes for symbolic sizes."""

import math
from collections.abc import Iterator

import torch
from onnx import NodeProto, ValueInfoProto
from torch import Tensor

from lstm_fused.errors import bad
from lstm_fused.interop.onnx.file import File, attributes
from lstm_fused.interop.onnx.views import DTYPES, KNOWN, OPERATORS, Call, Value

MAX_SYMBOLIC = 1000  # maximum number of symbolic sizes
LARGEST = 2**60  # maximum number of elements of a tensor: sizes and strides have 64 bits


class Tensors:
    """The tensors of a graph, through nodes that only move data.

    Args:
        file: the graph.
        least: lower bound of the primes.
    """

    def __init__(self, file: File, least: int) -> None:
        self.file = file
        self.primes = primes(least)
        self.symbolic: dict[int, str] = {}  # primes in use, with the symbolic size of each
        self.named: dict[str, int] = {}
        self.inputs: dict[str, Tensor] = {}  # graph inputs, by origin
        self.values: dict[str, Value] = {}

    def value(self, name: str) -> Value | None:
        """A tensor by name; None for the empty name."""
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
        """A meta tensor for a graph input, of which only the type must be declared."""
        declared = info.type.tensor_type
        if not info.type.HasField("tensor_type") or declared.elem_type not in DTYPES:
            raise bad("path", f"graph input {info.name!r} to be a tensor of floats or integers", info.type)
        dtype = DTYPES[declared.elem_type]
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else self.size(dim.dim_param)
            for dim in declared.shape.dim
        ]
        if any(size < 1 for size in sizes):
            raise bad("path", f"sizes of at least 1 in graph input {info.name!r}", sizes)
        return self.source(sizes, dtype)

    def source(self, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """A meta tensor, the base of views."""
        strides: list[int] = []
        stride = 1
        for size in reversed(sizes):
            strides.insert(0, stride)
            stride *= max(size, 2)  # size 1 gets a stride of its own, so that a transposition is visible
        if stride > LARGEST:
            raise bad("path", f"tensors of at most {LARGEST} elements", sizes)
        return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")

    def size(self, name: str) -> int:
        """A prime for a symbolic size; equal names get equal primes."""
        if name in self.named:
            return self.named[name]
        if len(self.symbolic) == MAX_SYMBOLIC:
            raise bad("path", f"at most {MAX_SYMBOLIC} symbolic sizes", "more")
        size = next(self.primes)
        self.symbolic[size] = name
        if name:
            self.named[name] = size
        return size

    def fits(self, size: int, expected: int) -> bool:
        """True if the size equals the expected one, or either is symbolic."""
        return size == expected or size in self.symbolic or expected in self.symbolic

    def describe(self, value: Value | None) -> str:
        """Describe a tensor in an error message."""
        if value is None:
            return "none"
        if value.tensor is None:
            return value.origin
        shape = ", ".join(self.symbolic.get(size, str(size)) or "?" for size in value.tensor.shape)
        return f"{value.origin} moved to ({shape})"

    def add(self, node: NodeProto, values: list[Value]) -> None:
        """Record the outputs of a node."""
        self.values |= dict(zip(node.output, values, strict=False))

    def move(self, kind: str, node: NodeProto) -> list[Value]:
        """The outputs of a node: views if it only moves data, otherwise unknown values."""
        inputs = [self.value(name) for name in node.input]
        unknown = next((value for value in inputs if value and value.tensor is None), None)
        if unknown is not None:
            return [unknown] * len(node.output)
        why = ""
        try:
            if kind in OPERATORS:
                return OPERATORS[kind](Call(inputs, attributes(node), len(node.output)))
        except Exception as error:  # any error, PyTorch's or ours: the node is not understood
            why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return [Value(f"{name!r} of {kind}{why}") for name in node.output]


def graph_input(name: str) -> str:
    """The origin of an input of the graph."""
    return f"graph input {name!r}"


def primes(least: int) -> Iterator[int]:
    """The primes from a number upwards."""
    n = least
    while True:
        if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)):
            yield n
        n += 1
