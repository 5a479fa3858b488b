"""The contract of an engine: the arguments and results of its forward and backward pass.

An engine computes one layer in one direction over the whole sequence:

    forward(inputs: Inputs) -> Outputs
    backward(saved: Saved, douts: OutputGradients) -> Gradients
    products(factors: Factors) -> Products
    gradients(given: GivenFactors, saved: Saved, douts: OutputGradients) -> InputGradients

The last two are optional and go together: `products` forms the gradients of x, W_ih and W_hh after the
recurrence, which `lstm_fused.reference` does for other engines; `gradients` is `backward` and `products` in
one call, without layer norm.
The operators' schemas, the shapes of their results, the batch axes for vmap and the differentiable inputs
are derived from the fields of these records. An operator takes the fields one by one, including those of the
variant; `flatten` and `unflatten` convert.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

Record = TypeVar("Record", bound=tuple[Any, ...])
Kind = type[tuple[Any, ...]]  # type of a record


class Spec(NamedTuple):
    """Dimensions and dtype of a tensor of the contract."""

    dims: str  # names of the dimensions; B is the batch
    grad: bool = False  # True if it is differentiable
    dtype: str = ""  # "int64", "wide": the accumulation dtype, "saved": the engine's choice; else that of x
    only_with: str = ""  # an output is empty if this argument is None or False


class Variant(NamedTuple):
    """Optional parts of the recurrence; none by default."""

    gain_hh: Annotated[Tensor | None, Spec("4H", grad=True)] = None  # of the layer norm
    h_mask: Annotated[Tensor | None, Spec("B P")] = None
    zoneout_h: Annotated[Tensor | None, Spec("T B P")] = None  # z_h, 0 to 1
    zoneout_c: Annotated[Tensor | None, Spec("T B H")] = None  # z_c, 0 to 1
    cell_clip: float | None = None

    @staticmethod
    def of(*values: Any) -> "Variant":
        """Make a Variant; `PLAIN` itself if all values are None, so that callers can test `is PLAIN`."""
        for value in values:  # a loop: this runs in every call
            if value is not None:
                return Variant(*values)
        return PLAIN

    def names(self) -> list[str]:
        """Names of the fields that are not None."""
        return [name for name, value in zip(self._fields, self, strict=True) if value is not None]


PLAIN = Variant()


class Inputs(NamedTuple):
    """Arguments of a forward pass."""

    x: Annotated[Tensor, Spec("T B I", grad=True)]
    weight_ih: Annotated[Tensor | None, Spec("4H I", grad=True)]  # None: x is already W_ih x, [T, B, 4H]
    weight_hh: Annotated[Tensor, Spec("4H P", grad=True)]
    bias_ih: Annotated[Tensor | None, Spec("4H", grad=True)]
    bias_hh: Annotated[Tensor | None, Spec("4H", grad=True)]
    peephole: Annotated[Tensor | None, Spec("3 H", grad=True)]  # p_i, p_f, p_o
    weight_hr: Annotated[Tensor | None, Spec("P H", grad=True)]
    h0: Annotated[Tensor, Spec("B P", grad=True)]
    c0: Annotated[Tensor, Spec("B H", grad=True)]
    lengths: Annotated[Tensor | None, Spec("B", dtype="int64")]
    reverse: bool
    save: bool  # True if a backward pass will follow
    variant: Variant = PLAIN

    @property
    def bias(self) -> Tensor | None:
        """The sum of the biases in their dtype, [4H]."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        return self.bias_ih + self.bias_hh


class Outputs(NamedTuple):
    """Results of a forward pass."""

    y: Annotated[Tensor, Spec("T B P")]  # h of every step
    h_n: Annotated[Tensor, Spec("B P")]
    c_n: Annotated[Tensor, Spec("B H")]
    c: Annotated[Tensor, Spec("T B H", dtype="saved", only_with="save")]
    gates: Annotated[Tensor, Spec("T B 4H", only_with="save")]  # i, f, g, o after their nonlinearity


class OutputGradients(NamedTuple):
    """Gradients of the outputs, arguments of a backward pass; None is zero."""

    dy: Annotated[Tensor | None, Spec("T B P", grad=True)]
    dh_n: Annotated[Tensor | None, Spec("B P", grad=True)]
    dc_n: Annotated[Tensor | None, Spec("B H", grad=True)]


class Saved(NamedTuple):
    """The other arguments of a backward pass."""

    c: Annotated[Tensor, Spec("T B H", dtype="saved")]
    gates: Annotated[Tensor, Spec("T B 4H")]
    c0: Annotated[Tensor, Spec("B H")]
    weight_hh: Annotated[Tensor, Spec("4H P")]
    peephole: Annotated[Tensor | None, Spec("3 H")]
    weight_hr: Annotated[Tensor | None, Spec("P H")]
    lengths: Annotated[Tensor | None, Spec("B", dtype="int64")]
    reverse: bool
    variant: Variant = PLAIN
    hw: Annotated[Tensor | None, Spec("T B 4H", dtype="wide")] = None  # W_hh h_{t-1}; given with layer norm


class Gradients(NamedTuple):
    """Results of a backward pass; the gradients of x, W_ih and W_hh are products of dxw."""

    dxw: Annotated[Tensor, Spec("T B 4H")]  # d loss / d a
    dh0: Annotated[Tensor, Spec("B P")]
    dc0: Annotated[Tensor, Spec("B H")]
    dbias: Annotated[Tensor, Spec("4H")]  # of either bias
    dpeephole: Annotated[Tensor, Spec("3 H")]  # zero without peepholes
    dhw: Annotated[Tensor, Spec("T B 4H", only_with="gain_hh")]  # d loss / d W_hh h_{t-1}; empty: equals dxw


class Factors(NamedTuple):
    """Factors of the products after the recurrence; those of a product that is not needed are None."""

    dxw: Annotated[Tensor, Spec("T B 4H")]
    dhw: Annotated[Tensor | None, Spec("T B 4H")]  # None: equals dxw
    x: Annotated[Tensor | None, Spec("T B I")]  # for dweight_ih
    weight_ih: Annotated[Tensor | None, Spec("4H I")]  # for dx
    y: Annotated[Tensor | None, Spec("T B P")]  # for dweight_hh, with h0; times h_mask
    h0: Annotated[Tensor | None, Spec("B P")]
    lengths: Annotated[Tensor | None, Spec("B", dtype="int64")]
    reverse: bool


class GivenFactors(NamedTuple):
    """Those of `Factors` that are known before the recurrence; None as there."""

    x: Annotated[Tensor | None, Spec("T B I")]
    weight_ih: Annotated[Tensor | None, Spec("4H I")]
    y: Annotated[Tensor | None, Spec("T B P")]
    h0: Annotated[Tensor | None, Spec("B P")]


class Products(NamedTuple):
    """Sums over the valid steps t of all rows; empty without their factors."""

    dx: Annotated[Tensor, Spec("T B I", only_with="weight_ih")]  # dxw_t W_ih, zero at other steps
    dweight_ih: Annotated[Tensor, Spec("4H I", only_with="x")]  # sum of dxw_tᵀ x_t
    dweight_hh: Annotated[Tensor, Spec("4H P", only_with="y")]  # sum of dhw_tᵀ h_{t-1}


class InputGradients(NamedTuple):
    """Results of `gradients`: those of `Products` and the rest of `Gradients`."""

    dx: Annotated[Tensor, Spec("T B I", only_with="weight_ih")]
    dweight_ih: Annotated[Tensor, Spec("4H I", only_with="x")]
    dweight_hh: Annotated[Tensor, Spec("4H P", only_with="y")]
    dh0: Annotated[Tensor, Spec("B P")]
    dc0: Annotated[Tensor, Spec("B H")]
    dbias: Annotated[Tensor, Spec("4H")]
    dpeephole: Annotated[Tensor, Spec("3 H")]


# Position of the variant in the records that have one.
VARIANT_AT: dict[Kind, int] = {record: record._fields.index("variant") for record in (Inputs, Saved)}


def flatten(*records: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields of records one by one, in the order of an operator's arguments."""
    flat: list[Any] = []
    for record in records:
        n = VARIANT_AT.get(type(record))
        if n is None:
            flat.extend(record)  # Dynamo of torch 2.11 cannot add a NamedTuple to a list
        else:
            flat += record[:n]
            flat.extend(record[n])
            flat += record[n + 1 :]
    return tuple(flat)


def unflatten(flat: Sequence[Any], *records: Kind) -> tuple[Any, ...]:
    """Undo `flatten` for records of these types; missing fields at the end have their defaults."""
    result: list[Any] = []
    start = 0
    for record in records:
        n, end = VARIANT_AT.get(record), start + length(record)
        values = flat[start:end]
        if n is not None and n < len(values):
            after = n + len(Variant._fields)
            values = *values[:n], Variant.of(*values[n:after]), *values[after:]
        result.append(record(*values))
        start = end
    return tuple(result)


def mapped(change: Callable[[Tensor], Any], record: Record) -> Record:
    """The record with a function applied to each tensor."""
    return type(record)(
        *[
            mapped(change, v) if isinstance(v, Variant) else change(v) if isinstance(v, Tensor) else v
            for v in record
        ]
    )


def hints(*records: Kind) -> dict[str, Any]:
    """Type hints of the fields of records, by name, in `flatten`'s order."""
    fields: dict[str, Any] = {}
    for record in records:
        for name, hint in get_type_hints(record, include_extras=True).items():
            fields |= hints(Variant) if hint is Variant else {name: hint}
    return fields


@cache
def specs(*records: Kind) -> tuple[Spec | None, ...]:
    """The spec of each field in `flatten`'s order; None for fields that are not tensors."""
    return tuple(next(iter(getattr(hint, "__metadata__", ())), None) for hint in hints(*records).values())


@cache
def length(record: Kind) -> int:
    """The number of arguments that a record takes."""
    return len(specs(record))


def batch_axes(*records: Kind) -> tuple[int | None, ...]:
    """The batch dimension of each field, in `flatten`'s order; None for weights and non-tensors."""
    return tuple(
        None if spec is None or "B" not in (dims := spec.dims.split()) else dims.index("B")
        for spec in specs(*records)
    )


def schema(takes: tuple[Kind, ...], yields: Kind) -> str:
    """The schema of an operator with the fields of these records as arguments."""
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
    """Empty tensors with the shapes and dtypes of an operator's results.

    Args:
        takes: the operator's arguments by name; those with defaults may be missing.
        yields: the record of the results.
        like: tensor with the dtype and device of the results.
        saved_dtype: the dtype in which the engine saves c.

    Raises:
        RuntimeError: the arguments are on different devices; PyTorch calls this if one is on the meta device.
    """
    sizes: dict[str, Any] = {}
    for name, value in takes.items():
        if isinstance(value, Tensor):
            if value.device != like.device:
                raise RuntimeError(f"{name} must be on {like.device} like the others, got {value.device}")
            for dim, size in zip(SPECS[name].dims.split(), value.shape, strict=True):
                sizes.setdefault(dim, size)
    sizes["3"] = 3
    if "H" in sizes:
        sizes["4H"] = 4 * sizes["H"]
    results = []
    for spec in specs(yields):
        assert spec is not None  # every result is a tensor
        wanted = takes.get(spec.only_with, spec.only_with == "")
        shape = [0] if wanted is None or wanted is False else [sizes[dim] for dim in spec.dims.split()]
        results.append(like.new_empty(shape, dtype=saved_dtype if spec.dtype == "saved" else like.dtype))
    return yields(*results)


SCHEMAS = {  # of an engine's operators; csrc/schemas.h repeats those of the C++ engine
    "forward": schema((Inputs,), Outputs),
    "backward": schema((OutputGradients, Saved), Gradients),
    "products": schema((Factors,), Products),
    "gradients": schema((GivenFactors, OutputGradients, Saved), InputGradients),
}
RECORDS = (
    *(Variant, Inputs, Outputs, OutputGradients, Saved, Gradients),
    *(Factors, GivenFactors, Products, InputGradients),
)
INPUTS = tuple(hints(Inputs))  # names of the forward operators' arguments
BACKWARD_INPUTS = tuple(hints(OutputGradients, Saved))
FACTORS = tuple(hints(Factors))
GRADIENTS_INPUTS = tuple(hints(GivenFactors, OutputGradients, Saved))
LENGTHS, SAVE = INPUTS.index("lengths"), INPUTS.index("save")
DIFFERENTIABLE = tuple(n for n, spec in enumerate(specs(Inputs)) if spec is not None and spec.grad)
SPECS = {  # by name; what users pass counts before what engines save
    name: spec
    for record in reversed(RECORDS)
    for name, spec in zip(hints(record), specs(record), strict=True)
    if spec is not None
}
