"""Rules of the autograd Functions for vmap, forward mode and higher derivatives.

vmap folds the mapped dimension into the batch, so that the engine runs once. If weights are mapped too, as in
an ensemble, it runs once per slice. Forward mode and derivatives of the gradients apply `torch.func.vjp`,
which nests in every transform, to `lstm_fused.reference`.
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
Operands = Sequence[Any]  # fields of records of the contract, in order


def weights_vmapped(dims: Iterable[int | None], axes: Iterable[int | None]) -> bool:
    """True if vmap maps over a tensor without a batch dimension to fold the mapped dimension into."""
    return any(dim is not None and axis is None for dim, axis in zip(dims, axes, strict=True))


def over_slices(
    function: Callable[..., Optionals], size: int, dims: Iterable[Any], arguments: Iterable[Any]
) -> tuple[Optionals, Axes]:
    """Call the function once per slice of the mapped dimension: the stacked outputs and their out_dims."""
    slices = [
        argument.unbind(dim) if isinstance(argument, Tensor) and dim is not None else (argument,) * size
        for argument, dim in zip(arguments, dims, strict=True)
    ]
    outputs = list(zip(*(function(*a) for a in zip(*slices, strict=True)), strict=True))
    stacked = tuple(None if o[0] is None else torch.stack(o) for o in outputs)
    return stacked, tuple(None if o is None else 0 for o in stacked)


def fold(size: int, dims: Axes, axes: Axes, operands: Operands) -> tuple[Any, ...]:
    """Fold the mapped dimension into each batch: [..., size, B, ...] to [..., size * B, ...]."""

    def folded(operand: Any, dim: int | None, axis: int | None) -> Any:
        if operand is None or axis is None:
            return operand
        if dim is None:
            split = operand.unsqueeze(axis).expand(*operand.shape[:axis], size, *operand.shape[axis:])
        else:
            split = operand.movedim(dim, axis)
        return split.flatten(axis, axis + 1)

    return tuple(folded(*item) for item in zip(operands, dims, axes, strict=True))


def unfold(size: int, axes: Axes, operands: Operands) -> tuple[Any, ...]:
    """Undo `fold`: split each batch into [size, B]."""
    return tuple(
        o if o is None or axis is None else o.unflatten(axis, (size, o.shape[axis] // size))
        for o, axis in zip(operands, axes, strict=True)
    )


def vmap_rule(
    layer: Callable[..., Any], size: int, dims: Axes, operands: Operands, out_axes: Axes
) -> tuple[Optionals, Axes]:
    """The vmap rule of a layer: its outputs and their out_dims.

    Args:
        layer: takes the fields of `Inputs`.
        size: length of the mapped dimension.
        dims: in_dims of the operands.
        operands: the fields of `Inputs`.
        out_axes: batch dimension of each output; empty outputs have none.
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
    """Compute gradients per vmap sample: split the batch into groups and sum weight gradients within each.

    Args:
        function: computes the needed gradients from ``operands``.
        needed: names of the inputs that need a gradient.
        groups: vmap sizes folded into the batch, outermost first. Weight gradients get them as leading
            dimensions; if empty, they are one sum over the whole batch.
        axes: batch dimension of each operand.
        operands: arguments of ``function``.
    """
    if not groups:
        return function(*operands)
    size = prod(groups)
    in_dims = tuple(None if o is None else axis for o, axis in zip(operands, axes, strict=True))
    out_axes = gradient_axes(needed)
    out_dims = tuple(axis or 0 for axis in out_axes)
    grads = torch.vmap(function, in_dims, out_dims)(*unfold(size, axes, operands))
    return tuple(
        g.unflatten(0, groups) if axis is None else g.flatten(axis, axis + 1)
        for g, axis in zip(grads, out_axes, strict=True)
    )


def gradient_axes(needed: Sequence[str]) -> Axes:
    """Batch dimension of the gradients of these inputs; None for weights."""
    axes = dict(zip(INPUTS, batch_axes(Inputs), strict=True))
    return tuple(axes[name] for name in needed)


def vjp(function: Callable[..., Tensors], *primals: Tensor) -> tuple[Tensors, Callable[..., Tensors]]:
    """`torch.func.vjp` inside transforms; plain autograd outside, so that saved-tensor hooks apply."""
    if torch._C._are_functorch_transforms_active():
        result: Any = torch.func.vjp(function, *primals)  # typed with an optional third item
        return result[0], result[1]
    primals = unwrap_dead_wrappers(primals)  # of transforms that have ended
    with torch.enable_grad():
        # Views: a primal that is computed from another is an independent leaf.
        leaves = tuple(p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in primals)
        outputs = function(*leaves)

    def pullback(cotangents: Tensors) -> Tensors:
        reached = [(o, d) for o, d in zip(outputs, cotangents, strict=True) if o.requires_grad]
        if not reached:
            return tuple(map(torch.zeros_like, leaves))
        results, grad_outputs = zip(*reached, strict=True)
        return torch.autograd.grad(
            results,
            leaves,
            grad_outputs,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )

    return outputs, pullback


def differentiable(operands: Operands, *records: Kind) -> tuple[int, ...]:
    """Positions of the differentiable tensors that are not None, among the fields of these records."""
    return tuple(
        n
        for n, (operand, spec) in enumerate(zip(operands, specs(*records), strict=True))
        if operand is not None and spec is not None and spec.grad
    )


def complete(operands: Operands) -> tuple[Any, ...]:
    """All fields of `Inputs`, those with defaults too, which are None."""
    return *operands, *(None,) * (len(INPUTS) - len(operands))


def at(positions: Iterable[int], operands: Operands) -> tuple[Any, ...]:
    """The operands at these positions."""
    return tuple([operands[n] for n in positions])


def put(positions: Iterable[int], values: Iterable[Any], operands: Operands) -> tuple[Any, ...]:
    """The operands, with these values at these positions."""
    changed = list(operands)
    for n, value in zip(positions, values, strict=True):
        changed[n] = value
    return tuple(changed)


def zeros_for_missing(tensors: Iterable[Tensor | None], like: Iterable[Tensor]) -> Tensors:
    """Replace None by zeros shaped like the reference tensors."""
    return tuple(torch.zeros_like(l) if t is None else t for t, l in zip(tensors, like, strict=True))


def layer_function(operands: Operands, positions: Sequence[int]) -> Callable[..., Tensors]:
    """The reference's y, h_n and c_n as a function of the operands at these positions.

    Args:
        operands: the fields of `Inputs`.
        positions: positions of the function's arguments.
    """

    def outputs(*values: Tensor) -> Tensors:
        (inputs,) = unflatten(put(positions, values, operands), Inputs)
        results = reference.forward(inputs._replace(save=False))
        return results.y, results.h_n, results.c_n

    return outputs


def gradient_function(
    needed: Sequence[str], groups: tuple[int, ...], operands: Operands, positions: Sequence[int]
) -> Callable[..., Tensors]:
    """The needed gradients as a function of the operands at these positions.

    Args:
        needed: names of the inputs that need a gradient.
        groups: as for `in_groups`.
        operands: the fields of `OutputGradients` and `Inputs`.
        positions: positions of the function's arguments.
    """

    def group_gradients(*operands: Any) -> Tensors:
        douts, inputs = unflatten(operands, OutputGradients, Inputs)
        own = flatten(inputs)
        places = differentiable(own, Inputs)
        outputs, pullback = vjp(layer_function(own, places), *at(places, own))
        grads = dict(zip(at(places, INPUTS), pullback(zeros_for_missing(douts, outputs)), strict=True))
        return tuple(grads[name] for name in needed)

    def gradients(*values: Tensor) -> Tensors:
        axes = batch_axes(OutputGradients, Inputs)
        return in_groups(group_gradients, needed, groups, axes, put(positions, values, operands))

    return gradients


def vjp_of(function: Callable[..., Tensors], tensors: Tensors, cotangents: Optionals) -> Tensors:
    """Reverse-mode derivative of a function of these tensors; a cotangent of None is zero."""
    outputs, pullback = vjp(function, *tensors)
    return pullback(zeros_for_missing(cotangents, outputs))


def jvp_of(function: Callable[..., Tensors], tensors: Tensors, tangents: Optionals) -> Tensors:
    """Forward-mode derivative, by reverse mode twice: plain forward mode does not nest."""
    outputs, pullback = vjp(function, *tensors)
    _, pushforward = vjp(lambda *cotangents: pullback(cotangents), *map(torch.zeros_like, outputs))
    return pushforward(zeros_for_missing(tangents, tensors))
