"""The autograd Functions around the operators: what is saved, and every derivative."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as is_batched
from torch._C._functorch import unwrap_if_dead

from lstm_fused import autocast, gradients, reference, tracing, transforms
from lstm_fused.gradients import PerInput
from lstm_fused.ops import backward_op, below_autograd, forward_op
from lstm_fused.reference import Variant
from lstm_fused.transforms import Axes, Optionals, Tensors


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


class LSTMFunction(Function):
    """One layer in one direction: the inputs it differentiates, lengths and masks, reverse, cell_clip."""

    @staticmethod
    def forward(engine: str, *arguments: Any) -> Tensors:
        *inputs, gain_hh, lengths, h_mask, zoneout_h, zoneout_c, reverse, cell_clip = arguments
        variant = (gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip)
        # Levels of transforms below this one record for themselves.
        lower = torch.enable_grad() if torch._C._are_functorch_transforms_active() else nullcontext()
        with lower, below_autograd():
            return forward_op[engine](*inputs, lengths, reverse, True, *variant)

    @staticmethod
    def composed(engine: str, *arguments: Any) -> Tensors:
        *tensors, reverse, cell_clip = arguments
        inputs, fixed = tensors[:9], tensors[9:]
        outputs = transforms.layer_maths(inputs, fixed, reverse, cell_clip)(*transforms.there(inputs))
        empty = outputs[0].new_empty(0)
        return (*outputs, empty, empty)  # nothing is saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.engine, *tensors, reverse, cell_clip = inputs
        ctx.how = reverse, cell_clip
        y, _, _, c, gates = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        # PyTorch would refuse a saved y that was changed in place: what is saved has a version of its own.
        ctx.kept = Version(y) if tracing.has_values(y) else None
        ctx.save_for_backward(*tensors, y.clone() if ctx.kept is None else y.data, c, gates)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        needs = PerInput(*ctx.needs_input_grad[1:10])
        *tensors, y, c, gates = ctx.saved_tensors
        with autocast.off(tensors[0].device):
            if ctx.kept is not None and ctx.kept.changed():
                with torch.no_grad():
                    y = LSTMFunction.forward(ctx.engine, *tensors, *ctx.how)[0]
            given = dy, dh_n, dc_n, *tensors, y, c, gates
            # Of is_grads_batched, whose tensors lose what a Function records.
            recorded = torch.is_grad_enabled()
            batched = recorded and any(map(is_batched, transforms.there(given[:3])))
            function: Any
            if batched:
                function = LSTMBackwardFunction.composed
            elif recorded or tracing.transformed():
                function = LSTMBackwardFunction.apply
            else:  # nobody asks for derivatives
                function = LSTMBackwardFunction.forward
                given = unwrapped(given)
            grads = function(ctx.engine, needs, *ctx.how, (), *given)
        return None, *grads, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Optionals:
        saved = ctx.saved_tensors  # read once: under a checkpoint they are there once
        maths = transforms.layer_maths(saved[:9], saved[9:], *ctx.how)
        return *transforms.push(maths, saved[:9], tangents[:9]), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], engine: str, *arguments: Any) -> tuple[Optionals, Axes]:
        *tensors, reverse, cell_clip = arguments

        def call(*tensors: Any) -> Any:
            return LSTMFunction.apply(engine, *tensors, reverse, cell_clip)

        return transforms.vmapped(call, info.batch_size, dims[1:-2], tensors, transforms.OUTPUTS)


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

    With ``groups``, the gradients of the weights are formed for each group of the batch by itself.
    """

    @staticmethod
    def forward(
        engine: str,
        needs: PerInput[bool],
        reverse: bool,
        cell_clip: float | None,
        groups: tuple[int, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        x: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias: Tensor | None,
        peephole: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        gain_hh: Tensor | None,
        lengths: Tensor | None,
        h_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        y: Tensor,
        c: Tensor,
        gates: Tensor,
    ) -> PerInput[Tensor | None]:
        variant = Variant(gain_hh, h_mask, zoneout_h, zoneout_c, cell_clip)
        # All that is left to do with h_{t-1} is to multiply it by W_hh, or its gradient.
        if h_mask is not None:
            y, h0 = y * h_mask, h0 * h_mask
        hw = None if gain_hh is None else gradients.recurrent_products(y, h0, weight_hh, lengths, reverse)
        with below_autograd():
            dxw, dh0, dc0, dbias, dpeephole, dhw = backward_op[engine](
                dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, weight_hr, lengths, reverse, *variant, hw
            )
        known = None if groups else (dbias, dpeephole)  # the engine's sums are over the whole batch
        weights = weight_ih, weight_hh, peephole
        form: Any = partial(LSTMBackwardFunction.form, needs, reverse, cell_clip, *weights, known)
        normed = (None, None) if hw is None else (dhw, hw)
        fixed = lengths, h_mask, zoneout_h, zoneout_c
        tensors: Optionals = (dxw, dh0, dc0, dy, dh_n, x, h0, c0, *fixed, y, c, gates, *normed)
        if not groups:
            found: PerInput[Tensor | None] = form(*tensors)
            return found
        axes = (*transforms.STATES, 1, 0, 1, 0, 0, *transforms.FIXED, *transforms.SAVED, 1, 1)
        return transforms.in_groups(form, needs, groups, axes, tensors)

    @staticmethod
    def composed(
        engine: str,
        needs: PerInput[bool],
        reverse: bool,
        cell_clip: float | None,
        groups: tuple[int, ...],
        *tensors: Any,
    ) -> PerInput[Tensor | None]:
        given, fixed = tensors[:12], tensors[12:16]
        maths = transforms.gradient_maths(needs, groups, given, fixed, reverse, cell_clip)
        found = iter(maths(*transforms.there(given)))
        return PerInput(*(next(found) if need else None for need in needs))

    @staticmethod
    def form(
        needs: PerInput[bool],
        reverse: bool,
        cell_clip: float | None,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        peephole: Tensor | None,
        sums: Sequence[Tensor] | None,
        dxw: Tensor,
        dh0: Tensor,
        dc0: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        lengths: Tensor | None,
        h_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        y: Tensor,
        c: Tensor,
        gates: Tensor,
        dhw: Tensor | None,
        hw: Tensor | None,
    ) -> PerInput[Tensor | None]:
        """Every gradient that is needed, after the recurrence; ``sums`` are those of bias and peephole."""
        if sums is None or zoneout_c is not None:
            wide = c.to(reference.accumulation_dtype(c.dtype))
            c_prev = reference.previous(wide, c0.to(wide.dtype), lengths, reverse)
            c = reference.cell_before_zoneout(wide, c_prev, gates, zoneout_c, cell_clip)
            if sums is None:
                sums = reference.vector_gradients(dxw, c, c_prev, peephole)
        d_bias, d_peephole = sums
        dhw = dxw if dhw is None else dhw
        dx, d_weight_ih, d_weight_hh = gradients.product_gradients(
            needs, dxw, dhw, x, weight_ih, y, h0, lengths, reverse
        )
        d_weight_hr = d_gain_hh = None
        if needs.weight_hr:
            d_weight_hr = gradients.weight_hr_gradient(
                dhw, dy, dh_n, c, gates, weight_hh, lengths, h_mask, zoneout_h, reverse
            )
        if needs.gain_hh and hw is not None:
            d_gain_hh = gradients.gain_hh_gradient(dxw, hw)
        return PerInput(
            dx,
            d_weight_ih,
            d_weight_hh,
            d_bias if needs.bias else None,
            d_peephole if needs.peephole else None,
            d_weight_hr,
            dh0 if needs.h0 else None,
            dc0 if needs.c0 else None,
            d_gain_hh,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: PerInput[Tensor | None]) -> None:
        _, ctx.needs, reverse, cell_clip, ctx.groups, *tensors = inputs
        ctx.how = reverse, cell_clip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:16])  # the saved y, c, gates follow from the rest
        ctx.save_for_forward(*tensors[:16])

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference's own gradient: no engine has a second derivative by hand."""
        saved = ctx.saved_tensors
        tensors, fixed = saved[:12], saved[12:]
        maths = transforms.gradient_maths(ctx.needs, ctx.groups, tensors, fixed, *ctx.how)
        needed = tuple(d for d, need in zip(dgrads, ctx.needs, strict=True) if need)
        with autocast.off(tensors[3].device):
            return (None,) * 5 + transforms.pull(maths, tensors, needed) + (None,) * 7

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> PerInput[Tensor | None]:
        saved = ctx.saved_tensors
        tensors, fixed = saved[:12], saved[12:]
        maths = transforms.gradient_maths(ctx.needs, ctx.groups, tensors, fixed, *ctx.how)
        pushed = iter(transforms.push(maths, tensors, tangents[5:17]))
        return PerInput(*(next(pushed) if need else None for need in ctx.needs))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Optionals, Axes]:
        axes = (*transforms.STATES, *transforms.INPUTS, *transforms.FIXED, *transforms.SAVED)
        engine, needs, reverse, cell_clip, groups, *tensors = arguments
        with tracing.vmapping():
            if transforms.weights_vmapped(dims[5:], axes):
                dims = (None,) * 5 + dims[5:]
                return transforms.over_slices(LSTMBackwardFunction.apply, info.batch_size, dims, arguments)
            folded = transforms.fold(info.batch_size, dims[5:], axes, tensors)
            groups = (info.batch_size, *groups)
            grads = LSTMBackwardFunction.apply(engine, needs, reverse, cell_clip, groups, *folded)
        where = zip(grads, transforms.INPUTS, strict=True)
        out_dims = tuple(None if grad is None else axis or 0 for grad, axis in where)
        return transforms.unfold(info.batch_size, transforms.INPUTS, grads), out_dims
