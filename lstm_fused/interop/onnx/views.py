"""Represents graph tensors as views of their source, through operators that only move data.

Tensors on the device "meta" have sizes and strides but no memory. The strides of a view say where each
element comes from, and PyTorch computes them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

KNOWN = "constant"
COPIED = 1 << 16  # maximum number of elements of a computed constant, usually a shape
LARGEST = 2**31 - 1  # stands for "to the end"
DTYPES: dict[int, torch.dtype] = {
    TensorProto.BOOL: torch.bool,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
}


class Value(NamedTuple):
    """A tensor of the graph.

    Args:
        origin: name of the source that it is a view of, or `KNOWN`; a description if it is unknown.
        tensor: on the CPU if its elements are known, else on the device "meta"; None if it is unknown.
    """

    origin: str
    tensor: Tensor | None = None


class Call(NamedTuple):
    """Arguments of an operator.

    Args:
        inputs: None for omitted ones.
        attributes: attributes by name.
        outputs: number of outputs.
    """

    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: int

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.tensor(0)

    def tensor(self, place: int) -> Tensor:
        """An input that is not unknown."""
        value = self.inputs[place] if place < len(self.inputs) else None
        if value is None or value.tensor is None:
            raise ValueError(value.origin if value else f"no input {place}")
        return value.tensor

    def known(self, place: int) -> Tensor:
        """An input with known elements, at most `COPIED`."""
        tensor = self.tensor(place)
        require(not tensor.is_meta and tensor.numel() <= COPIED, f"input {place} is not known")
        return tensor

    def integers(self, name: str, place: int, default: list[int] | None = None) -> list[int]:
        """Integers that old opsets have as an attribute and new ones as an input."""
        if name in self.attributes:
            return list(self.attributes[name])
        if place < len(self.inputs) and self.inputs[place] is not None:
            tensor = self.known(place)
            require(tensor.dim() <= 1 and tensor.dtype in (torch.int32, torch.int64), f"no integers {name}")
            numbers: list[int] = tensor.reshape(-1).tolist()
            return numbers
        if default is None:
            raise ValueError(f"no {name}")
        return default

    def moved(self, *tensors: Tensor) -> list[Value]:
        """Views of the first input."""
        value = self.inputs[0]
        assert value is not None
        return [Value(value.origin, tensor) for tensor in tensors]


def require(condition: bool, otherwise: str) -> None:
    """Raise unless the condition holds; the operator's outputs are then unknown."""
    if not condition:
        raise ValueError(otherwise)


def same(one: Tensor | None, other: Tensor) -> bool:
    """True if two views of one origin have the same elements in the same places."""
    return (
        one is not None
        and one.shape == other.shape
        and one.storage_offset() == other.storage_offset()
        and all(n == 1 or a == b for n, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))
    )


def is_filled(tensor: Tensor, value: float) -> bool:
    """True if all elements of a constant have this value; expanded axes are read once."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor.numel() > 0 and bool((tensor == value).all())


def reshaped(x: Tensor, shape: list[int]) -> Tensor:
    """A view in another shape; constants of at most `COPIED` elements may be copied."""
    return x.reshape(shape) if not x.is_meta and x.numel() <= COPIED else x.view(shape)


def transpose(call: Call) -> list[Value]:
    """Transpose."""
    backwards = list(reversed(range(call.x.dim())))
    return call.moved(call.x.permute(list(call.attributes.get("perm", backwards))))


def squeeze(call: Call) -> list[Value]:
    """Squeeze."""
    ones = [axis for axis, n in enumerate(call.x.shape) if n == 1]
    axes = call.integers("axes", 1, ones)
    require(bool(axes) or not ones, "no axes, which may be none or all")
    require(all(call.x.shape[axis] == 1 for axis in axes), "an axis that is not of size 1")
    return call.moved(call.x.squeeze(axes))


def unsqueeze(call: Call) -> list[Value]:
    """Unsqueeze."""
    axes = call.integers("axes", 1)
    rank = call.x.dim() + len(axes)
    require(all(-rank <= axis < rank for axis in axes), f"axes {axes}")
    places = sorted(axis % rank for axis in axes)
    require(len(set(places)) == len(places), f"axes {axes}")
    x = call.x
    for place in places:
        x = x.unsqueeze(place)
    return call.moved(x)


def reshape(call: Call) -> list[Value]:
    """Reshape."""
    shape = call.integers("shape", 1)
    if not call.attributes.get("allowzero", 0):
        shape = [call.x.shape[axis] if n == 0 else n for axis, n in enumerate(shape)]
    return call.moved(reshaped(call.x, shape))


def cut(call: Call) -> list[Value]:
    """Slice."""
    starts, ends = call.integers("starts", 1), call.integers("ends", 2)
    axes = call.integers("axes", 3, list(range(len(starts))))
    steps = call.integers("steps", 4, [1] * len(starts))
    x = call.x
    require(len({axis % x.dim() for axis in axes}) == len(axes), f"axes {axes}")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # A bound beyond this prime may be within the actual size.
        beyond = any(size < abs(bound) < LARGEST for bound in (start, end))
        require(step == 1 and not beyond, f"{start}:{end}:{step} of {size}")
        first, last, _ = slice(start, end).indices(size)
        x = x.narrow(axis, first, last - first)
    return call.moved(x)


def split(call: Call) -> list[Value]:
    """Split."""
    axis = call.attributes.get("axis", 0)
    size, n = call.x.shape[axis], call.outputs
    even = [size // n] * n
    parts = call.integers("split", 1, even)
    require(call.attributes.get("num_outputs", n) == n == len(parts), f"{len(parts)} parts")
    require(parts is not even or size % n == 0, f"{n} parts of {size}")
    return call.moved(*call.x.split(parts, axis))


def gather(call: Call) -> list[Value]:
    """Gather."""
    axis = call.attributes.get("axis", 0)
    indices = call.known(1)
    size = call.x.shape[axis]
    places = [place + size if place < 0 else place for place in indices.reshape(-1).tolist()]
    require(len(places) > 0 and all(0 <= place < size for place in places), f"indices {places}")
    if indices.dim() == 0:
        return call.moved(call.x.select(axis, places[0]))
    consecutive = places == list(range(places[0], places[0] + len(places)))
    require(indices.dim() == 1 and consecutive, f"indices {places}")
    return call.moved(call.x.narrow(axis, places[0], len(places)))


def expand(call: Call) -> list[Value]:
    """Expand."""
    shape = torch.broadcast_shapes(call.x.shape, call.integers("shape", 1))
    return call.moved(call.x.expand(shape))


def concat(call: Call) -> list[Value]:
    """Concat of constants, or of adjacent views of one source."""
    tensors = [call.tensor(place) for place in range(len(call.inputs))]
    axis = call.attributes["axis"]
    first = call.x
    if not any(tensor.is_meta for tensor in tensors):
        require(sum(tensor.numel() for tensor in tensors) <= COPIED, "many elements")
        require(len({tensor.dtype for tensor in tensors}) == 1, "more than one dtype")
        return call.moved(torch.cat(tensors, axis))
    require(len({value.origin for value in call.inputs if value}) == 1, "parts of different origin")
    require(len({tensor.dim() for tensor in tensors}) == 1, "parts of different rank")
    step = first.stride(axis)
    if first.shape[axis] == 1 and len(tensors) > 1:  # its stride is arbitrary
        step = tensors[1].storage_offset() - first.storage_offset()
    size = 0
    for tensor in tensors:
        offset = first.storage_offset() + size * step
        beginning = tensor.narrow(axis, 0, 1)
        require(beginning.storage_offset() == offset, "parts that do not follow each other")
        require(tensor.shape[axis] == 1 or tensor.stride(axis) == step, "parts of different strides")
        aligned = beginning.as_strided(beginning.shape, beginning.stride(), first.storage_offset())
        require(same(aligned, first.narrow(axis, 0, 1)), "parts of different sizes or strides")
        size += tensor.shape[axis]
    shape, strides = list(first.shape), list(first.stride())
    shape[axis], strides[axis] = size, step
    return call.moved(first.as_strided(shape, strides, first.storage_offset()))


def shape_of(call: Call) -> list[Value]:
    """Shape."""
    start, end = call.attributes.get("start", 0), call.attributes.get("end", None)
    return [Value(KNOWN, torch.tensor(call.x.shape[start:end], dtype=torch.int64))]


def constant_of_shape(call: Call) -> list[Value]:
    """ConstantOfShape, as an expanded element."""
    value = torch.zeros(1)
    if "value" in call.attributes:
        value = torch.tensor(numpy_helper.to_array(call.attributes["value"])).reshape(1)
    return [Value(KNOWN, value.expand(call.integers("shape", 0)))]


def cast(call: Call) -> list[Value]:
    """Cast of constants of at most `COPIED` elements, and of integers to integers or to x != 0."""
    x, dtype = call.x, DTYPES[call.attributes["to"]]
    if not x.is_meta:
        return call.moved(call.known(0).to(dtype))
    integers = (torch.int32, torch.int64)
    require(dtype == x.dtype or (x.dtype in integers and dtype in (*integers, torch.bool)), f"to {dtype}")
    (value,) = call.moved(x.new_empty((), dtype=dtype).as_strided(x.shape, x.stride(), x.storage_offset()))
    return [value._replace(origin=nonzero(value.origin)) if dtype == torch.bool else value]


def multiply(call: Call) -> list[Value]:
    """Mul of sizes."""
    left, right = call.known(0), call.known(1)
    require(left.dtype == right.dtype == torch.int64, "no sizes")
    require(math.prod(torch.broadcast_shapes(left.shape, right.shape)) <= COPIED, "many elements")
    return [Value(KNOWN, left * right)]


def nonzero(origin: str) -> str:
    """Origin of the booleans x != 0 for integers x of this origin."""
    return f"whether not zero, {origin}"


OPERATORS: dict[str, Callable[[Call], list[Value]]] = {
    "Identity": lambda call: call.moved(call.x),
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Reshape": reshape,
    "Slice": cut,
    "Split": split,
    "Gather": gather,
    "Expand": expand,
    "Concat": concat,
    "Shape": shape_of,
    "ConstantOfShape": constant_of_shape,
    "Cast": cast,
    "Mul": multiply,
}
