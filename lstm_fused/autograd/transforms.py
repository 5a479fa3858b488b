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

from lstm_fused import reference
from lstm_fused.autograd import tracing
from lstm_fused.contract import INPUTS, Inputs, Kind, OutputGradients, batch_axes, flatten, specs, unflatten

Tensors = tuple[Tensor, ...]
Optionals = tuple[Tensor | None, ...]
Axes = tuple[int | None, ...]
Operands = Sequence[Any]  # the fields of records of the contract, in their order


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


def fold(size: int, dims: Axes, axes: Axes, operands: Operands) -> tuple[Any, ...]:
    """Make the vmapped dimension, ``size`` wide, the outer part of each batch."""

    def folded(operand: Any, dim: int | None, axis: int | None) -> Any:
        if operand is None or axis is None:
            return operand
        if dim is None:
            split = operand.unsqueeze(axis).expand(*operand.shape[:axis], size, *operand.shape[axis:])
        else:
            split = operand.movedim(dim, axis)
        return split.flatten(axis, axis + 1)

    return tuple(folded(*one) for one in zip(operands, dims, axes, strict=True))


def unfold(size: int, axes: Axes, operands: Operands) -> tuple[Any, ...]:
    """Split each batch, the outer part ``size`` wide."""
    return tuple(
        o if o is None or axis is None else o.unflatten(axis, (size, o.shape[axis] // size))
        for o, axis in zip(operands, axes, strict=True)
    )


def vmapped(
    layer: Callable[..., Any], size: int, dims: Axes, operands: Operands, out_axes: Axes
) -> tuple[Optionals, Axes]:
    """Run a layer over a batch of calls: its outputs, and where they have the vmapped dimension.

    Args:
        layer: takes the fields of `Inputs`.
        size: of the vmapped dimension.
        dims: where each operand has it.
        operands: the fields of `Inputs`.
        out_axes: where the outputs have their batch; empty outputs have none.
    """
    axes = batch_axes(Inputs)
    with tracing.vmapping():
        if weights_vmapped(dims, axes):
            return over_slices(layer, size, dims, operands)
        outputs = layer(*fold(size, dims, axes, operands))
    out_axes = tuple(None if o.dim() == 1 else axis for o, axis in zip(outputs, out_axes, strict=True))
    return unfold(size, out_axes, outputs), out_axes


def in_groups(
    function: Callable[..., Tensors],
    needed: Sequence[str],
    groups: tuple[int, ...],
    axes: Axes,
    operands: Operands,
) -> Tensors:
    """Form gradients for each group of the batch separately.

    Args:
        function: forms the gradients that are needed from ``operands``.
        needed: the names of the inputs that need a gradient.
        groups: the vmapped sizes that were folded into the batch, outermost first. The gradient of a weight
            gets them as leading dimensions; without any, it is one sum over the whole batch.
        axes: where each operand has its batch.
        operands: what the gradients are formed from.
    """
    if not groups:
        return function(*operands)
    size = prod(groups)
    in_dims = tuple(None if o is None else axis for o, axis in zip(operands, axes, strict=True))
    found_axes = gradient_axes(needed)
    out_dims = tuple(axis or 0 for axis in found_axes)
    found = torch.vmap(function, in_dims, out_dims)(*unfold(size, axes, operands))
    return tuple(
        g.unflatten(0, groups) if axis is None else g.flatten(axis, axis + 1)
        for g, axis in zip(found, found_axes, strict=True)
    )


def gradient_axes(needed: Sequence[str]) -> Axes:
    """Where the gradients of these inputs have their batch."""
    axes = dict(zip(INPUTS, batch_axes(Inputs), strict=True))
    return tuple(axes[name] for name in needed)


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


def differentiable(operands: Operands, *records: Kind) -> tuple[int, ...]:
    """The positions of the differentiable tensors that are there, among the fields of these records."""
    return tuple(
        n
        for n, (operand, spec) in enumerate(zip(operands, specs(*records), strict=True))
        if operand is not None and spec is not None and spec.grad
    )


def at(positions: Iterable[int], operands: Operands) -> tuple[Any, ...]:
    """The operands at these positions."""
    return tuple(operands[n] for n in positions)


def put(positions: Iterable[int], values: Iterable[Any], operands: Operands) -> tuple[Any, ...]:
    """The operands, with these values at these positions."""
    changed = list(operands)
    for n, value in zip(positions, values, strict=True):
        changed[n] = value
    return tuple(changed)


def or_zeros(tensors: Iterable[Tensor | None], like: Iterable[Tensor]) -> Tensors:
    """The tensors, with zeros in place of None."""
    return tuple(torch.zeros_like(l) if t is None else t for t, l in zip(tensors, like, strict=True))


def layer_maths(operands: Operands, positions: Sequence[int]) -> Callable[..., Tensors]:
    """The reference's y, h_n and c_n as a function of the operands at these positions.

    Args:
        operands: the fields of `Inputs`.
        positions: those of the tensors that the function takes.
    """

    def outputs(*values: Tensor) -> Tensors:
        (inputs,) = unflatten(put(positions, values, operands), Inputs)
        found = reference.forward(inputs._replace(save=False))
        return found.y, found.h_n, found.c_n

    return outputs


def gradient_maths(
    needed: Sequence[str], groups: tuple[int, ...], operands: Operands, positions: Sequence[int]
) -> Callable[..., Tensors]:
    """The needed gradients as a function of the operands at these positions.

    Args:
        needed: the names of the inputs that need a gradient.
        groups: as for `in_groups`.
        operands: the fields of `OutputGradients` and `Inputs`.
        positions: those of the tensors that the function takes.
    """

    def of_group(*operands: Any) -> Tensors:
        douts, inputs = unflatten(operands, OutputGradients, Inputs)
        of_layer = flatten(inputs)
        places = differentiable(of_layer, Inputs)
        outputs, pullback = vjp(layer_maths(of_layer, places), *at(places, of_layer))
        found = dict(zip(at(places, INPUTS), pullback(or_zeros(douts, outputs)), strict=True))
        return tuple(found[name] for name in needed)

    def gradients(*values: Tensor) -> Tensors:
        axes = batch_axes(OutputGradients, Inputs)
        return in_groups(of_group, needed, groups, axes, put(positions, values, operands))

    return gradients


def pull(function: Callable[..., Tensors], tensors: Tensors, cotangents: Optionals) -> Tensors:
    """Reverse mode over a function of these tensors; None is a zero cotangent."""
    outputs, pullback = vjp(function, *tensors)
    return pullback(or_zeros(cotangents, outputs))


def push(function: Callable[..., Tensors], tensors: Tensors, tangents: Optionals) -> Tensors:
    """Forward mode over the same; by reverse mode twice, because plain forward mode does not nest."""
    outputs, pullback = vjp(function, *tensors)
    _, pushforward = vjp(lambda *cotangents: pullback(cotangents), *map(torch.zeros_like, outputs))
    return pushforward(or_zeros(tangents, tensors))
