"""The autograd Functions around the operators: what is saved, and every derivative."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as is_batched
from torch._C._functorch import unwrap_if_dead

from lstm_fused.autograd import autocast, tracing, transforms
from lstm_fused.autograd.gradients import Kept, input_gradients, recurrent_products
from lstm_fused.autograd.operators import backward_op, below_autograd, forward_op
from lstm_fused.autograd.transforms import Axes, Optionals, Tensors, at, differentiable, put
from lstm_fused.contract import (
    INPUTS,
    Gradients,
    Inputs,
    OutputGradients,
    Outputs,
    Saved,
    batch_axes,
    flatten,
    specs,
    unflatten,
)


def unwrapped(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The same without the wrappers of transforms that have ended."""
    return tuple([unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in arguments])


class Function(torch.autograd.Function):
    """A Function called without PyTorch's search for default arguments, a third of a short layer's time."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return cls.apply_once(*unwrapped(arguments))
        # PyTorch computes a jvp with forward mode off, so an outer level would find no tangent in its result
        # (pytorch/pytorch#197867); the reference's own operations nest.
        return cls.composed(*arguments) if tracing.forward_levels() > 1 else super().apply(*arguments)

    @classmethod
    def apply_once(cls, *arguments: Any) -> Any:
        """Apply it at this level of the transforms alone."""
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @staticmethod
    def composed(*arguments: Any) -> Any:
        """What `forward` returns, composed of PyTorch's own differentiable operations."""
        raise NotImplementedError


def store(ctx: Any, operands: Sequence[Any], *more: Tensor) -> None:
    """Save operands, and more tensors, for the derivatives."""
    tensors = [operand if isinstance(operand, Tensor) else None for operand in operands]
    ctx.settings = [None if isinstance(operand, Tensor) else operand for operand in operands]
    ctx.save_for_backward(*tensors, *more)
    ctx.save_for_forward(*tensors)


def load(ctx: Any) -> tuple[Any, ...]:
    """What was saved; read once, because under a checkpoint it is there once."""
    saved = ctx.saved_tensors
    count = len(ctx.settings)
    operands = [s if t is None else t for s, t in zip(ctx.settings, saved[:count], strict=True)]
    return *operands, *saved[count:]


class LSTMFunction(Function):
    """One layer in one direction: the engine, and the fields of `Inputs`, of which save is true."""

    @staticmethod
    def forward(engine: str, *operands: Any) -> Tensors:
        # Levels of transforms below this one record for themselves.
        lower = torch.enable_grad() if torch._C._are_functorch_transforms_active() else nullcontext()
        with lower, below_autograd():
            return forward_op[engine](*operands)

    @staticmethod
    def composed(engine: str, *operands: Any) -> Tensors:
        places = differentiable(operands, Inputs)
        outputs = transforms.layer_maths(operands, places)(*at(places, operands))
        empty = outputs[0].new_empty(0)
        return (*outputs, empty, empty)  # nothing is saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.engine, *operands = inputs
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        # PyTorch would refuse a saved y that was changed in place: what is saved has a version of its own.
        ctx.version = Version(y) if tracing.has_values(y) else None
        store(ctx, operands, y.clone() if ctx.version is None else y.data, c, gates)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        needed = tuple(n for n, need in zip(INPUTS, ctx.needs_input_grad[1:], strict=True) if need)
        *operands, y, c, gates = load(ctx)
        with autocast.off(gates.device):
            if ctx.version is not None and ctx.version.changed():
                with torch.no_grad():
                    y = LSTMFunction.forward(ctx.engine, *operands)[0]
            given = dy, dh_n, dc_n, *operands, y, c, gates
            # Of is_grads_batched, whose tensors lose what a Function records.
            recorded = torch.is_grad_enabled()
            batched = recorded and any(d is not None and is_batched(d) for d in (dy, dh_n, dc_n))
            function: Any
            if batched:
                function = LSTMBackwardFunction.composed
            elif recorded or tracing.transformed():
                function = LSTMBackwardFunction.apply
            else:  # nobody asks for derivatives
                function = LSTMBackwardFunction.forward
                given = unwrapped(given)
            grads = dict(zip(needed, function(ctx.engine, needed, (), *given), strict=True))
        return None, *(grads.get(name) for name in INPUTS)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Optionals:
        operands = load(ctx)[: len(INPUTS)]
        places = differentiable(operands, Inputs)
        maths = transforms.layer_maths(operands, places)
        return *transforms.push(maths, at(places, operands), at(places, tangents)), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], engine: str, *operands: Any) -> tuple[Optionals, Axes]:
        layer = partial(LSTMFunction.apply, engine)
        return transforms.vmapped(layer, info.batch_size, dims[1:], operands, batch_axes(Outputs))


class Version:
    """Tells whether a tensor has been changed in place since, without keeping its memory.

    Args:
        tensor: the tensor to watch.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.counter = tensor.detach()  # shares the version counter,
        self.counter.data = tensor.new_empty(0)  # which outlives this change of memory
        self.version = self.counter._version

    def changed(self) -> bool:
        """Whether it has been changed."""
        return self.counter._version != self.version


class LSTMBackwardFunction(Function):
    """The backward pass as a function of its own, so that it can be differentiated once more.

    It takes the engine, the names of the inputs that need a gradient, the groups of `transforms.in_groups`,
    and then the fields of `OutputGradients`, `Inputs` and `Kept`.
    """

    @staticmethod
    def forward(engine: str, needed: Sequence[str], groups: tuple[int, ...], *operands: Any) -> Tensors:
        douts, inputs, kept = unflatten(operands, OutputGradients, Inputs, Kept)
        h_mask, gain_hh = inputs.variant.h_mask, inputs.variant.gain_hh
        # All that is left to do with h_{t-1} is to multiply it by W_hh, or its gradient.
        if h_mask is not None:
            inputs = inputs._replace(h0=inputs.h0 * h_mask)
            kept = kept._replace(y=kept.y * h_mask)
        if gain_hh is not None:
            hw = recurrent_products(kept.y, inputs.h0, inputs.weight_hh, inputs.lengths, inputs.reverse)
            kept = kept._replace(hw=hw)
        saved = Saved(
            kept.c,
            kept.gates,
            inputs.c0,
            inputs.weight_hh,
            inputs.peephole,
            inputs.weight_hr,
            inputs.lengths,
            inputs.reverse,
            inputs.variant,
            kept.hw,
        )
        with below_autograd():
            found = Gradients(*backward_op[engine](*flatten(douts, saved)))
        if gain_hh is None:
            found = found._replace(dhw=found.dxw)
        if not groups:
            return input_gradients(needed, True, douts, inputs, kept, found)
        records = OutputGradients, Inputs, Kept, Gradients

        def of_group(*operands: Any) -> Tensors:
            return input_gradients(needed, False, *unflatten(operands, *records))

        operands = flatten(douts, inputs, kept, found)
        return transforms.in_groups(of_group, needed, groups, batch_axes(*records), operands)

    @staticmethod
    def composed(engine: str, needed: Sequence[str], groups: tuple[int, ...], *operands: Any) -> Tensors:
        given = operands[:GIVEN]
        places = differentiable(given, OutputGradients, Inputs)
        return transforms.gradient_maths(needed, groups, given, places)(*at(places, given))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        _, ctx.needed, ctx.groups, *operands = inputs
        ctx.set_materialize_grads(False)
        store(ctx, operands[:GIVEN])  # the saved y, c, gates follow from the rest

    @staticmethod
    def maths(ctx: Any) -> tuple[Callable[..., Tensors], tuple[int, ...], Tensors]:
        """The gradients as a function of the differentiable operands, their places, and themselves."""
        given = load(ctx)
        places = differentiable(given, OutputGradients, Inputs)
        return transforms.gradient_maths(ctx.needed, ctx.groups, given, places), places, at(places, given)

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's own gradient: no engine has a second derivative by hand."""
        maths, places, tensors = LSTMBackwardFunction.maths(ctx)
        with autocast.off(tensors[0].device):
            pulled = transforms.pull(maths, tensors, dgrads)
        return None, None, None, *put(places, pulled, (None,) * (GIVEN + len(Kept._fields) - 1))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        maths, places, tensors = LSTMBackwardFunction.maths(ctx)
        return transforms.push(maths, tensors, at(places, tangents[3:]))

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[Any, ...],
        engine: str,
        needed: Sequence[str],
        groups: tuple[int, ...],
        *operands: Any,
    ) -> tuple[Optionals, Axes]:
        axes, dims = batch_axes(OutputGradients, Inputs, Kept)[:-1], dims[3:]
        with tracing.vmapping():
            if transforms.weights_vmapped(dims, axes):
                function = partial(LSTMBackwardFunction.apply, engine, needed, groups)
                return transforms.over_slices(function, info.batch_size, dims, operands)
            folded = transforms.fold(info.batch_size, dims, axes, operands)
            groups = (info.batch_size, *groups)
            grads = LSTMBackwardFunction.apply(engine, needed, groups, *folded)
        found_axes = transforms.gradient_axes(needed)
        out_dims = tuple(axis or 0 for axis in found_axes)
        return transforms.unfold(info.batch_size, found_axes, grads), out_dims


GIVEN = len(specs(OutputGradients, Inputs))  # operands that a derivative of the gradients follows from
