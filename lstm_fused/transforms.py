"""What the layer's Functions do under `vmap`, in forward mode, and when differentiated twice or more.

A vmapped dimension becomes the outer part of the batch, so that the engine still runs once; only where the
weights are vmapped too, as in an ensemble, does it run once for each. Forward mode, and derivatives of the
gradients, come from the maths of `lstm_fused.reference` by `torch.func.vjp`, which nests in every transform.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from lstm_fused import reference, tracing
from lstm_fused.gradients import PerInput
from lstm_fused.reference import Variant

Tensors = tuple[Tensor, ...]
Optionals = tuple[Tensor | None, ...]
Axes = tuple[int | None, ...]

# Where each tensor has its batch; weights have none.
INPUTS = PerInput(
    x=1, weight_ih=None, weight_hh=None, bias=None, peephole=None, weight_hr=None, h0=0, c0=0, gain_hh=None
)
FIXED = (0, 0, 1, 1)  # lengths, h_mask, zoneout_h, zoneout_c
OUTPUTS = (1, 0, 0, 1, 1)  # y, h_n, c_n, c, gates
STATES = (1, 0, 0)  # dy, dh_n, dc_n; dxw, dh0, dc0
SAVED = (1, 1, 1)  # y, c, gates


def weights_vmapped(dims: Iterable[int | None], axes: Iterable[int | None]) -> bool:
    """Whether a vmapped dimension lies in a tensor without a batch to fold it into."""
    return any(dim is not None and axis is None for dim, axis in zip(dims, axes, strict=True))


def over_slices(
    function: Callable[..., Optionals], size: int, dims: Iterable[Any], arguments: Iterable[Any]
) -> tuple[Optionals, Axes]:
    """Call once for each slice of the vmapped dimension: the outputs, and where they have it."""
    each = [
        argument.unbind(dim) if isinstance(argument, Tensor) and dim is not None else (argument,) * size
        for argument, dim in zip(arguments, dims, strict=True)
    ]
    outputs = list(zip(*(function(*one) for one in zip(*each, strict=True)), strict=True))
    stacked = tuple(None if of[0] is None else torch.stack(of) for of in outputs)
    return stacked, tuple(None if of is None else 0 for of in stacked)


def fold(size: int, dims: Axes, axes: Axes, tensors: Sequence[Tensor | None]) -> Optionals:
    """Make the vmapped dimension, ``size`` wide, the outer part of each batch."""

    def folded(tensor: Tensor | None, dim: int | None, axis: int | None) -> Tensor | None:
        if tensor is None or axis is None:
            return tensor
        if dim is None:
            apart = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            apart = tensor.movedim(dim, axis)
        return apart.flatten(axis, axis + 1)

    return tuple(folded(*one) for one in zip(tensors, dims, axes, strict=True))


def unfold(size: int, axes: Axes, tensors: Optionals) -> Optionals:
    """Split each batch, the outer part ``size`` wide."""
    return tuple(
        t if t is None or axis is None else t.unflatten(axis, (size, t.shape[axis] // size))
        for t, axis in zip(tensors, axes, strict=True)
    )


def vmapped(
    layer: Callable[..., Any], size: int, dims: Axes, tensors: Sequence[Tensor | None], out_axes: Axes
) -> tuple[Optionals, Axes]:
    """Run a layer over a batch of calls: its outputs, and where they have the vmapped dimension.

    Args:
        layer: takes tensors as in `INPUTS` and `FIXED`.
        size: of the vmapped dimension.
        dims: where each tensor has it.
        tensors: what the layer is given.
        out_axes: where the outputs have their batch; they may be followed by empty ones.
    """
    axes = (*INPUTS, *FIXED)
    with tracing.vmapping():
        if weights_vmapped(dims, axes):
            return over_slices(layer, size, dims, tensors)
        outputs = layer(*fold(size, dims, axes, tensors))
    out_axes = (*out_axes, *(None,) * (len(outputs) - len(out_axes)))
    return unfold(size, out_axes, outputs), out_axes


def in_groups(
    function: Callable[..., PerInput[Tensor | None]],
    needs: PerInput[bool],
    groups: tuple[int, ...],
    axes: Axes,
    tensors: Optionals,
) -> PerInput[Tensor | None]:
    """Form gradients for each group of the batch by itself.

    Args:
        function: forms the gradients that are needed from ``tensors``.
        needs: which those are.
        groups: the shape of the outer part of the batch, which dimensions in front of a weight's gradient
            then have; with none, it is one sum over the whole batch.
        axes: where each tensor has its batch.
        tensors: what the gradients are formed from.
    """
    if not groups:
        return function(*tensors)
    size = prod(groups)
    in_dims = tuple(None if t is None else axis for t, axis in zip(tensors, axes, strict=True))
    out_dims: Any = PerInput(*(axis or 0 if need else None for need, axis in zip(needs, INPUTS, strict=True)))
    found = torch.vmap(function, in_dims, out_dims)(*unfold(size, axes, tensors))
    return PerInput(
        *(
            None if g is None else g.unflatten(0, groups) if axis is None else g.flatten(axis, axis + 1)
            for g, axis in zip(found, INPUTS, strict=True)
        )
    )


def vjp(function: Callable[..., Tensors], *primals: Tensor) -> tuple[Tensors, Callable[..., Tensors]]:
    """`torch.func.vjp`; outside of transforms the same by autograd, where hooks may watch what is saved."""
    if torch._C._are_functorch_transforms_active():
        result: Any = torch.func.vjp(function, *primals)  # whose type allows for a third part
        return result[0], result[1]
    primals = unwrap_dead_wrappers(primals)  # of levels that have ended
    with torch.enable_grad():
        # Views, so that a primal computed from another counts by itself.
        leaves = tuple(p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in primals)
        outputs = function(*leaves)

    def pullback(cotangents: Tensors) -> Tensors:
        reached = [(o, d) for o, d in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not reached:
            return tuple(map(torch.zeros_like, leaves))
        results, given = zip(*reached, strict=True)
        return torch.autograd.grad(
            results,
            leaves,
            given,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )

    return outputs, pullback


def refill(places: Iterable[Tensor | None], present: Iterable[Tensor]) -> Optionals:
    """Those that are there, in their places; None in the others."""
    values = iter(present)
    return tuple(None if place is None else next(values) for place in places)


def there(tensors: Iterable[Tensor | None]) -> Tensors:
    """Those that are there."""
    return tuple(t for t in tensors if t is not None)


def or_zeros(tensors: Iterable[Tensor | None], like: Iterable[Tensor]) -> Tensors:
    """Zeros for those that are not there."""
    return tuple(torch.zeros_like(l) if t is None else t for t, l in zip(tensors, like, strict=True))


def layer_maths(
    inputs: Sequence[Tensor | None], fixed: Sequence[Tensor | None], reverse: bool, cell_clip: float | None
) -> Callable[..., Tensors]:
    """The reference's y, h_n and c_n as a function of the inputs that are there."""

    def outputs(*present: Tensor) -> Tensors:
        every: PerInput[Any] = PerInput(*refill(inputs, present))
        lengths, h_mask, zoneout_h, zoneout_c = fixed
        variant = Variant(every.gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip)
        return reference.lstm_forward(*every[:8], lengths, reverse, False, variant)[:3]

    return outputs


def gradient_maths(
    needs: PerInput[bool],
    groups: tuple[int, ...],
    tensors: Optionals,
    fixed: Optionals,
    reverse: bool,
    cell_clip: float | None,
) -> Callable[..., Tensors]:
    """The needed gradients as a function of those of dy, dh_n, dc_n and the inputs that are there."""

    def of_group(*tensors: Tensor | None) -> PerInput[Tensor | None]:
        douts, inputs, fixed = tensors[:3], tensors[3:12], tensors[12:]
        outputs, pullback = vjp(layer_maths(inputs, fixed, reverse, cell_clip), *there(inputs))
        found = refill(inputs, pullback(or_zeros(douts, outputs)))
        return PerInput(*(g if need else None for g, need in zip(found, needs, strict=True)))

    def gradients(*present: Tensor) -> Tensors:
        everything = (*refill(tensors, present), *fixed)
        return there(in_groups(of_group, needs, groups, (*STATES, *INPUTS, *FIXED), everything))

    return gradients


def pull(function: Callable[..., Tensors], tensors: Optionals, cotangents: Optionals) -> Optionals:
    """Reverse mode over a function of the tensors that are there."""
    outputs, pullback = vjp(function, *there(tensors))
    return refill(tensors, pullback(or_zeros(cotangents, outputs)))


def push(function: Callable[..., Tensors], tensors: Optionals, tangents: Optionals) -> Tensors:
    """Forward mode over the same; by reverse mode twice, for plain forward mode does not nest."""
    outputs, pullback = vjp(function, *there(tensors))
    _, pushforward = vjp(lambda *cotangents: pullback(cotangents), *map(torch.zeros_like, outputs))
    return pushforward(
        or_zeros((d for t, d in zip(tensors, tangents, strict=True) if t is not None), there(tensors))
    )
