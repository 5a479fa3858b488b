"""The autograd Functions around the operators: saved tensors, derivatives and vmap."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as is_batched

from lstm_fused.autograd import autocast, tracing, transforms
from lstm_fused.autograd.autocast import NO_CONTEXT
from lstm_fused.autograd.base import Function, Version, unwrapped
from lstm_fused.autograd.gradients import (
    Kept,
    by_name,
    given_factors,
    input_gradients,
    recurrent_products,
)
from lstm_fused.autograd.operators import backward_op, below_autograd, forward_op, gradients, gradients_op
from lstm_fused.autograd.transforms import Axes, Optionals, Tensors, at, differentiable, put
from lstm_fused.backends import streams
from lstm_fused.contract import (
    DIFFERENTIABLE,
    INPUTS,
    SAVE,
    Gradients,
    Inputs,
    Kind,
    OutputGradients,
    Outputs,
    batch_axes,
    flatten,
    specs,
    unflatten,
)


def store(ctx: Any, operands: Sequence[Any], settings: Sequence[int], *more: Tensor) -> None:
    """Save operands, of which those at the positions ``settings`` are no tensors, and further tensors."""
    tensors = list(operands)
    for n in settings:
        tensors[n] = None
    ctx.settings = [(n, operands[n]) for n in settings]
    ctx.save_for_backward(*tensors, *more)
    if tracing.under_transform():
        ctx.save_for_forward(*tensors)


def not_tensors(*records: Kind) -> tuple[int, ...]:
    """Positions of the fields that are no tensors, among the fields of these records."""
    return tuple(n for n, spec in enumerate(specs(*records)) if spec is None)


SETTINGS = not_tensors(Inputs)
# Without the fields of the variant.
PLAIN_SETTINGS, PLAIN_DIFFERENTIABLE = (
    tuple(n for n in positions if n <= SAVE) for positions in (SETTINGS, DIFFERENTIABLE)
)


def load(ctx: Any) -> tuple[Any, ...]:
    """The saved operands and tensors. Call once: a checkpoint unpacks saved_tensors only once."""
    operands = list(ctx.saved_tensors)
    for n, setting in ctx.settings:
        operands[n] = setting
    return tuple(operands)


class LSTMFunction(Function):
    """One layer in one direction.

    Arguments: the engine's name and the fields of `Inputs`, with save=True. Those of a plain variant may be
    missing, except in a transform.
    """

    @staticmethod
    def forward(engine: str, *operands: Any) -> Tensors:
        # Lower transform levels need grad mode to record this call.
        lower = torch.enable_grad() if torch._C._are_functorch_transforms_active() else NO_CONTEXT
        with lower, below_autograd():
            return forward_op[engine](*operands)

    @staticmethod
    def composed(engine: str, *operands: Any) -> Tensors:
        positions = differentiable(operands, Inputs)
        outputs = transforms.layer_function(operands, positions)(*at(positions, operands))
        empty = outputs[0].new_empty(0)
        return (*outputs, empty, empty)  # nothing is saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.engine, *operands = inputs
        ctx.launches = streams.STATE.launches
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        # PyTorch refuses a saved tensor that was changed in place: save y without its version counter, and
        # compare that counter later. Nothing reads the y of a single step, whose h_{t-1} is h0.
        known = tracing.has_values(y)
        ctx.version = Version(y) if known and len(y) > 1 else None
        settings = SETTINGS if len(operands) == len(INPUTS) else PLAIN_SETTINGS
        store(ctx, operands, settings, y.data if known else y.clone(), c, gates)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        *operands, y, c, gates = load(ctx)
        share = streams.sharing(ctx.launches) if ctx.launches > 1 else NO_CONTEXT
        changed = ctx.version is not None and ctx.version.changed()
        with share:
            return layer_gradients(
                ctx.engine, ctx.needs_input_grad, operands, (y, c, gates), (dy, dh_n, dc_n), changed
            )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Optionals:
        operands = load(ctx)[: len(INPUTS)]
        positions = differentiable(operands, Inputs)
        function = transforms.layer_function(operands, positions)
        return *transforms.jvp_of(function, at(positions, operands), at(positions, tangents)), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], engine: str, *operands: Any) -> tuple[Optionals, Axes]:
        layer = partial(LSTMFunction.apply, engine)
        return transforms.vmap_rule(layer, info.batch_size, dims[1:], operands, batch_axes(Outputs))


def layer_gradients(
    engine: str,
    needs: Sequence[bool],
    operands: Sequence[Any],
    kept: Tensors,
    douts: Optionals,
    changed: bool,
) -> tuple[Any, ...]:
    """The gradients of a layer's arguments, None where they are not needed.

    Args:
        engine: the engine's name, the first of the arguments.
        needs: which arguments need a gradient.
        operands: the other arguments, fields of `Inputs`; those of a plain variant may be missing.
        kept: y, c and the gates.
        douts: gradients of y, h_n and c_n, None for zero.
        changed: whether y has changed since; it is computed again.
    """
    y, c, gates = kept
    plain = len(operands) < len(INPUTS)
    needed = [INPUTS[n] for n in (PLAIN_DIFFERENTIABLE if plain else DIFFERENTIABLE) if needs[n + 1]]
    with autocast.off(gates.device):
        if changed:
            with torch.no_grad():
                y = LSTMFunction.forward(engine, *operands)[0]
        if torch.is_grad_enabled() or tracing.under_transform():
            # Legacy batched tensors (is_grads_batched) lose what a Function records.
            recording = torch.is_grad_enabled()
            batched = recording and any(d is not None and is_batched(d) for d in douts)
            function = LSTMBackwardFunction.composed if batched else LSTMBackwardFunction.apply
            found = function(engine, needed, (), *douts, *transforms.complete(operands), y, c, gates)
            grads = dict(zip(needed, found, strict=True))
        else:  # no higher derivatives
            records = OutputGradients(*unwrapped(douts)), *unflatten(operands, Inputs), Kept(y, c, gates)
            grads = LSTMBackwardFunction.gradients(engine, needed, (), *records)
    wanted = zip(INPUTS, needs[1:], strict=False)  # masks may require gradients but get none
    return None, *[grads.get(name) if wants else None for name, wants in wanted]


class LSTMBackwardFunction(Function):
    """The backward pass as a Function of its own, so that it can be differentiated again.

    Arguments: the engine's name, the names of the inputs that need a gradient, the groups of
    `transforms.in_groups`, then the fields of `OutputGradients`, `Inputs` and `Kept`.
    """

    @staticmethod
    def forward(engine: str, needed: Sequence[str], groups: tuple[int, ...], *operands: Any) -> Tensors:
        records = unflatten(operands, OutputGradients, Inputs, Kept)
        grads = LSTMBackwardFunction.gradients(engine, needed, groups, *records)
        if "bias_ih" in needed and "bias_hh" in needed:  # one tensor, which cannot have two tangents
            grads["bias_hh"] = grads["bias_hh"].clone()
        return tuple([grads[name] for name in needed])

    @staticmethod
    def gradients(
        engine: str,
        needed: Sequence[str],
        groups: tuple[int, ...],
        douts: OutputGradients,
        inputs: Inputs,
        kept: Kept,
    ) -> dict[str, Tensor]:
        """`forward` for records, by name, where others than the needed may be among them.

        A call without higher derivatives starts here.
        """
        h_mask, gain_hh = inputs.variant.h_mask, inputs.variant.gain_hh
        # From here on, h_{t-1} is used only in products with W_hh and in their gradients: mask it once.
        if h_mask is not None:
            inputs = inputs._replace(h0=inputs.h0 * h_mask)
            kept = kept._replace(y=kept.y * h_mask)
        if gain_hh is not None:
            hw = recurrent_products(kept.y, inputs.h0, inputs.weight_hh, inputs.lengths, inputs.reverse)
            kept = kept._replace(hw=hw)
        weights = inputs.weight_hh, inputs.peephole, inputs.weight_hr
        options = inputs.lengths, inputs.reverse, *inputs.variant
        saved = kept.c, kept.gates, inputs.c0, *weights, *options, kept.hw  # the fields of Saved
        no_dxw = gain_hh is None and inputs.weight_hr is None and inputs.weight_ih is not None
        if no_dxw and not groups and engine in gradients_op:
            return by_name(gradients(engine, given_factors(needed, inputs, kept.y), douts, saved))
        with below_autograd():
            results = backward_op[engine](*douts, *saved)
        if gain_hh is None:  # dhw equals dxw
            results = *results[:-1], results[0]
        engine_grads = Gradients(*results)
        if not groups:
            return input_gradients(needed, engine, douts, inputs, kept, engine_grads)
        records = OutputGradients, Inputs, Kept, Gradients

        def group_gradients(*operands: Any) -> Tensors:
            grads = input_gradients(needed, None, *unflatten(operands, *records))
            return tuple([grads[name] for name in needed])

        operands = flatten(douts, inputs, kept, engine_grads)
        axes = batch_axes(*records)
        found = transforms.in_groups(group_gradients, needed, groups, axes, operands)
        return dict(zip(needed, found, strict=True))

    @staticmethod
    def composed(engine: str, needed: Sequence[str], groups: tuple[int, ...], *operands: Any) -> Tensors:
        sources = operands[:SOURCES]
        positions = differentiable(sources, OutputGradients, Inputs)
        return transforms.gradient_function(needed, groups, sources, positions)(*at(positions, sources))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        _, ctx.needed, ctx.groups, *operands = inputs
        ctx.set_materialize_grads(False)
        store(ctx, operands[:SOURCES], SOURCE_SETTINGS)  # y, c and gates are functions of the rest

    @staticmethod
    def gradient_function(ctx: Any) -> tuple[Callable[..., Tensors], tuple[int, ...], Tensors]:
        """The gradients as a function of the differentiable operands, their positions, and the operands."""
        sources = load(ctx)
        positions = differentiable(sources, OutputGradients, Inputs)
        function = transforms.gradient_function(ctx.needed, ctx.groups, sources, positions)
        return function, positions, at(positions, sources)

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's gradient: engines have no second derivative."""
        function, positions, tensors = LSTMBackwardFunction.gradient_function(ctx)
        with autocast.off(tensors[0].device):
            pulled = transforms.vjp_of(function, tensors, dgrads)
        return None, None, None, *put(positions, pulled, (None,) * (SOURCES + len(Kept._fields) - 1))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensors:
        function, positions, tensors = LSTMBackwardFunction.gradient_function(ctx)
        return transforms.jvp_of(function, tensors, at(positions, tangents[3:]))

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
        out_axes = transforms.gradient_axes(needed)
        out_dims = tuple(axis or 0 for axis in out_axes)
        return transforms.unfold(info.batch_size, out_axes, grads), out_dims


SOURCES = len(specs(OutputGradients, Inputs))  # operands that derivatives of the gradients are computed from
SOURCE_SETTINGS = not_tensors(OutputGradients, Inputs)
