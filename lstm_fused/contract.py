"""The contract of an engine: what its forward and backward pass take and yield, stated once.

An engine computes one layer in one direction over the whole sequence:

    forward(inputs: Inputs) -> Outputs
    backward(saved: Saved, douts: OutputGradients) -> Gradients

The operators' schemas, the shapes of their results, the batch axes for vmap and the differentiable inputs
follow from the fields of these records. An operator takes the fields one by one, those of the variant too;
`flatten` and `unflatten` convert.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

Record = TypeVar("Record", bound=tuple[Any, ...])
Kind = type[tuple[Any, ...]]  # of a record


class Spec(NamedTuple):
    """What a tensor of the contract looks like."""

    dims: str  # a name for each dimension; B is the batch
    grad: bool = False  # whether it is differentiable
    dtype: str = ""  # "int64", "wide": the accumulation dtype, "saved": the engine's choice; else that of x
    only_with: str = ""  # the argument without which an output is empty


class Variant(NamedTuple):
    """What a layer does beyond the textbook; by default nothing."""

    gain_hh: Annotated[Tensor | None, Spec("4H", grad=True)] = None  # of the layer norm
    h_mask: Annotated[Tensor | None, Spec("B P")] = None
    zoneout_h: Annotated[Tensor | None, Spec("T B P")] = None  # z_h, 0 to 1
    zoneout_c: Annotated[Tensor | None, Spec("T B H")] = None  # z_c, 0 to 1
    cell_clip: float | None = None

    @staticmethod
    def of(*values: Any) -> "Variant":
        """The variant of these values, in order; `PLAIN` itself if all are None, which is quick to tell."""
        for value in values:  # a loop: this runs in every call
            if value is not None:
                return Variant(*values)
        return PLAIN

    def names(self) -> list[str]:
        """The names of the values that are not None."""
        return [name for name, value in zip(self._fields, self, strict=True) if value is not None]


PLAIN = Variant()


class Inputs(NamedTuple):
    """What a forward pass takes."""

    x: Annotated[Tensor, Spec("T B I", grad=True)]
    weight_ih: Annotated[Tensor | None, Spec("4H I", grad=True)]  # None: x is W_ih x already, [T, B, 4H]
    weight_hh: Annotated[Tensor, Spec("4H P", grad=True)]
    bias: Annotated[Tensor | None, Spec("4H", grad=True)]
    peephole: Annotated[Tensor | None, Spec("3H", grad=True)]  # p_i, p_f, p_o
    weight_hr: Annotated[Tensor | None, Spec("P H", grad=True)]
    h0: Annotated[Tensor, Spec("B P", grad=True)]
    c0: Annotated[Tensor, Spec("B H", grad=True)]
    lengths: Annotated[Tensor | None, Spec("B", dtype="int64")]
    reverse: bool
    save: bool  # whether the backward pass will follow
    variant: Variant = PLAIN


class Outputs(NamedTuple):
    """What a forward pass yields."""

    y: Annotated[Tensor, Spec("T B P")]  # h of every step
    h_n: Annotated[Tensor, Spec("B P")]
    c_n: Annotated[Tensor, Spec("B H")]
    c: Annotated[Tensor, Spec("T B H", dtype="saved", only_with="save")]
    gates: Annotated[Tensor, Spec("T B 4H", only_with="save")]  # i, f, g, o after their nonlinearity


class OutputGradients(NamedTuple):
    """The gradients that a backward pass starts from; None is zero."""

    dy: Annotated[Tensor | None, Spec("T B P", grad=True)]
    dh_n: Annotated[Tensor | None, Spec("B P", grad=True)]
    dc_n: Annotated[Tensor | None, Spec("B H", grad=True)]


class Saved(NamedTuple):
    """What a backward pass takes besides."""

    c: Annotated[Tensor, Spec("T B H", dtype="saved")]
    gates: Annotated[Tensor, Spec("T B 4H")]
    c0: Annotated[Tensor, Spec("B H")]
    weight_hh: Annotated[Tensor, Spec("4H P")]
    peephole: Annotated[Tensor | None, Spec("3H")]
    weight_hr: Annotated[Tensor | None, Spec("P H")]
    lengths: Annotated[Tensor | None, Spec("B", dtype="int64")]
    reverse: bool
    variant: Variant = PLAIN
    hw: Annotated[Tensor | None, Spec("T B 4H", dtype="wide")] = None  # W_hh h_{t-1}; given with layer norm


class Gradients(NamedTuple):
    """What a backward pass yields; every other gradient follows from dxw."""

    dxw: Annotated[Tensor, Spec("T B 4H")]  # d loss / d a
    dh0: Annotated[Tensor, Spec("B P")]
    dc0: Annotated[Tensor, Spec("B H")]
    dbias: Annotated[Tensor, Spec("4H")]
    dpeephole: Annotated[Tensor, Spec("3H")]  # zero without peepholes
    dhw: Annotated[Tensor, Spec("T B 4H", only_with="gain_hh")]  # d loss / d W_hh h_{t-1}; else it is dxw


def flatten(*records: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields of records one by one, as an operator takes them."""
    flat: list[Any] = []
    for record in records:
        for value in record:
            if isinstance(value, Variant):
                flat.extend(value)
            else:
                flat.append(value)
    return tuple(flat)


def unflatten(flat: Sequence[Any], *records: Kind) -> tuple[Any, ...]:
    """Records of these types from their fields; fields that lack at the end are as by default."""
    found: list[Any] = []
    start = 0
    for record in records:
        values: list[Any] = []
        for is_variant in variant_fields(record):
            width = len(Variant._fields) if is_variant else 1
            if start < len(flat):
                values.append(Variant.of(*flat[start : start + width]) if is_variant else flat[start])
            start += width
        found.append(record(*values))
    return tuple(found)


def mapped(change: Callable[[Tensor], Any], record: Record) -> Record:
    """The record with each tensor changed."""
    return type(record)(
        *[
            mapped(change, v) if isinstance(v, Variant) else change(v) if isinstance(v, Tensor) else v
            for v in record
        ]
    )


@cache
def variant_fields(record: Kind) -> tuple[bool, ...]:
    """Whether each field of a record is a `Variant`."""
    return tuple(hint is Variant for hint in get_type_hints(record).values())


def hints(*records: Kind) -> dict[str, Any]:
    """The types of the fields of records one by one."""
    found: dict[str, Any] = {}
    for record in records:
        for name, hint in get_type_hints(record, include_extras=True).items():
            found |= hints(Variant) if hint is Variant else {name: hint}
    return found


@cache
def specs(*records: Kind) -> tuple[Spec | None, ...]:
    """The spec of each field in `flatten`'s order; None for those that are no tensors."""
    return tuple(next(iter(getattr(hint, "__metadata__", ())), None) for hint in hints(*records).values())


def batch_axes(*records: Kind) -> tuple[int | None, ...]:
    """Where each field has its batch, in `flatten`'s order; None for weights and what is no tensor."""
    return tuple(
        None if spec is None or "B" not in (dims := spec.dims.split()) else dims.index("B")
        for spec in specs(*records)
    )


def schema(takes: tuple[Kind, ...], yields: Kind) -> str:
    """The schema of an operator that takes the fields of these records."""
    records: tuple[Any, ...] = (*takes, Variant)
    optional = {name for record in records for name in record._field_defaults}

    def kind(hint: Any) -> str:
        plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        name: str = (get_args(plain) or (plain,))[0].__name__
        return name + "?" * isinstance(plain, UnionType)

    arguments = [
        f"{kind(hint)} {name}" + "=None" * (name in optional) for name, hint in hints(*takes).items()
    ]
    results = [f"{kind(hint)} {name}" for name, hint in hints(yields).items()]
    return f"({', '.join(arguments)}) -> ({', '.join(results)})"


def empty_outputs(
    takes: dict[str, Any], yields: type[Record], like: Tensor, saved_dtype: torch.dtype
) -> Record:
    """What an operator yields, as empty tensors.

    Args:
        takes: its arguments by name; those as by default may lack.
        yields: the record of its results.
        like: has the dtype and device of the results.
        saved_dtype: the dtype that the engine saves c in.
    """
    sizes: dict[str, Any] = {}
    for name, value in takes.items():
        if isinstance(value, Tensor):
            for dim, size in zip(SPECS[name].dims.split(), value.shape, strict=True):
                sizes.setdefault(dim, size)
    sizes |= {"3H": 3 * sizes["H"], "4H": 4 * sizes["H"]}
    results = []
    for spec in specs(yields):
        assert spec is not None  # every result is a tensor
        wanted = takes.get(spec.only_with, spec.only_with == "")
        shape = [0] if wanted is None or wanted is False else [sizes[dim] for dim in spec.dims.split()]
        results.append(like.new_empty(shape, dtype=saved_dtype if spec.dtype == "saved" else like.dtype))
    return yields(*results)


RECORDS = Variant, Inputs, Outputs, OutputGradients, Saved, Gradients
INPUTS = tuple(hints(Inputs))  # the names of the forward operators' arguments
BACKWARD_INPUTS = tuple(hints(OutputGradients, Saved))
SAVE = INPUTS.index("save")
DIFFERENTIABLE = tuple(n for n, spec in enumerate(specs(Inputs)) if spec is not None and spec.grad)
SPECS = {
    name: spec
    for record in RECORDS
    for name, spec in zip(hints(record), specs(record), strict=True)
    if spec is not None
}
