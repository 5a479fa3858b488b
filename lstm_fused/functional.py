"""`lstm`: one layer in one direction; checks arguments, chooses the engine and calls it."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lstm_fused.autograd import autocast, tracing
from lstm_fused.autograd.autocast import NO_CONTEXT
from lstm_fused.autograd.base import unwrapped
from lstm_fused.autograd.dispatch import differentiated
from lstm_fused.autograd.function import LSTMFunction
from lstm_fused.autograd.operators import below_autograd, forward_op
from lstm_fused.autograd.plain import PlainFunction, serves
from lstm_fused.backends.choice import notice
from lstm_fused.backends.table import DEFAULT_OPERATORS, select
from lstm_fused.checks import States, check_layer
from lstm_fused.contract import LENGTHS, PLAIN, SAVE, Variant
from lstm_fused.interop.graph import call_function, proxy_in, refuse_script
from lstm_fused.layers.layer_norm import layer_norm
from lstm_fused.layers.options import bound, flag
from lstm_fused.layers.parameters import Parameters
from lstm_fused.reference import is_valid


def lstm(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    weight_hr: Tensor | None = None,
    gain_ih: Tensor | None = None,
    gain_hh: Tensor | None = None,
    hx: States | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    h_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
    cell_clip: float | None = None,
    engine: str | None = None,
) -> tuple[Tensor, States]:
    """Run one layer of an LSTM in one direction over whole sequences.

    The equations are those of `lstm_fused.reference`; gates are ordered i, f, g, o. All tensors but
    ``lengths`` share one floating-point dtype and one device. Under autocast, all but float64 are cast to its
    dtype.

    Args:
        input: the sequences, shape (T, B, I).
        weight_ih: input weights, shape (4H, I).
        weight_hh: recurrent weights, shape (4H, H), or (4H, P) with a projection.
        bias_ih: bias, shape (4H,).
        bias_hh: a second bias that is added to the first, shape (4H,).
        peephole: peephole weights p_i, p_f, p_o, shape (3H,) or (3, H); None has none.
        weight_hr: projection of h, shape (P, H) with P < H; None has none.
        gain_ih: gain of a layer norm over W_ih x_t, shape (4H,); None has none. Both gains or none.
        gain_hh: gain of a layer norm over W_hh h_{t-1}, shape (4H,).
        hx: initial states h_0 (B, P or H) and c_0 (B, H); zeros by default.
        lengths: valid steps of each sequence, from 0 to T, integers of shape (B,), on any device, in any
            order. Outputs past a length are zero, states are those of the last valid step.
        reverse: run from the last valid step to the first.
        h_mask: factor of h_{t-1} in W_hh h_{t-1} at every step, shape (B, P or H): recurrent dropout. No
            gradient flows to it, nor to the next two.
        zoneout_h: share of the old h that each step keeps, 0 to 1, shape (T, B, P or H).
        zoneout_c: share of the old c that each step keeps, 0 to 1, shape (T, B, H).
        cell_clip: bound on the magnitude of c; None has none.
        engine: "cpp", "triton", "metal" or "reference", never replaced by another; None takes the best one.

    Returns:
        The outputs (T, B, P or H), and the last states h_n (B, P or H) and c_n (B, H).

    Raises:
        ArgumentError: an argument has the wrong rank, size, dtype, device or value, or no such engine exists.
        RuntimeError: the engine cannot serve this device or dtype; the message says why.

    Examples:
        >>> T, B, I, H = 50, 3, 28, 64
        >>> weight_ih, weight_hh = torch.randn(4 * H, I), torch.randn(4 * H, H)
        >>> y, (h_n, c_n) = lstm(torch.randn(T, B, I), weight_ih, weight_hh, peephole=torch.zeros(3 * H))
        >>> y.shape, torch.equal(y[-1], h_n)
        (torch.Size([50, 3, 64]), True)
    """
    given = dict(locals())  # a copy: debuggers add to the original
    if (proxy := proxy_in(hx, *given.values())) is not None:  # torch.fx records one node
        return call_function(lstm, proxy, **given)  # type: ignore[no-any-return]
    variant = Variant.of(gain_hh, h_mask, zoneout_h, zoneout_c, bound("cell_clip", cell_clip))
    p = unflattened(peephole, weight_hh)
    own = Parameters(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, p, gain_ih, gain_hh)
    check_layer(input, own, hx, lengths, variant)
    return run_layer(input, own, hx, lengths, flag("reverse", reverse), engine, variant)


lstm.__prepare_scriptable__ = partial(refuse_script, "lstm")  # type: ignore[attr-defined]


def unflattened(peephole: Any, weight_hh: Any) -> Any:
    """The peepholes as [3, H] if they are given as [3H]; faults are left to the checks."""
    for tensor in (peephole, weight_hh):
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_nested:
            return peephole
    H = weight_hh.shape[0] // 4 if weight_hh.dim() == 2 else 0
    return peephole.unflatten(0, (3, H)) if peephole.shape == (3 * H,) else peephole


def run_layer(
    input: Tensor,
    own: Parameters,
    hx: States | None,
    lengths: Tensor | None,
    reverse: bool,
    engine: str | None,
    variant: Variant,
) -> tuple[Tensor, States]:
    """`lstm` for checked arguments."""
    device, dtype = input.device, input.dtype
    casting = autocast.enabled(device)
    if casting:
        dtype = autocast.computed_in(input)
    chosen = select(engine, device, dtype, variant)
    if engine is None:
        if chosen == "reference" and not tracing.recorded():
            notice(device, dtype, variant)
        chosen = DEFAULT_OPERATORS.get(chosen, chosen)
    if hx is None:
        B, H, P = input.shape[1], own.weight_ih.shape[0] // 4, own.weight_hh.shape[1]
        h0 = input.new_zeros(B, P)
        hx = h0, h0 if P == H and not tracing.recorded() else input.new_zeros(B, H)
    if lengths is not None:
        lengths = lengths.to(device, torch.int64)
    h0, c0 = hx
    weights = own.weight_ih, own.weight_hh, own.bias_ih, own.bias_hh, own.peephole, own.weight_hr
    # The fields of Inputs.
    operands: tuple[Any, ...] = (input, *weights, h0, c0, lengths, reverse, False, *variant)
    if casting:
        operands = tuple([cast(operand, dtype) for operand in operands])
    with autocast.off(device) if casting else NO_CONTEXT:
        if own.gain_ih is not None:
            x, weight_ih = operands[:2]
            xw = normalized_products(x, weight_ih, operands[LENGTHS], cast(own.gain_ih, dtype))
            operands = (xw, None, *operands[2:])
        recorded = tracing.recorded()
        records = not recorded and differentiated(operands)
        plain = variant is PLAIN and not tracing.under_transform()
        if plain:  # omitting trailing defaults saves time
            operands = operands[: -len(variant)]
        if records and plain and serves(chosen, operands):
            y, h_n, c_n = PlainFunction.apply_once(chosen, *unwrapped(operands[:SAVE]), True)
        elif records:
            y, h_n, c_n, _, _ = LSTMFunction.apply(chosen, *operands[:SAVE], True, *operands[SAVE + 1 :])
        else:
            # A recorded program holds the operator; dispatch.py has its derivatives.
            with NO_CONTEXT if recorded else below_autograd():
                y, h_n, c_n, _, _ = forward_op[chosen](*operands)
    return y, (h_n, c_n)


def cast(operand: Any, dtype: torch.dtype) -> Any:
    """A tensor in the autocast dtype; lengths stay integers, and what is no tensor stays as it is."""
    floating = isinstance(operand, Tensor) and operand.is_floating_point()
    return operand.to(dtype) if floating else operand


def normalized_products(x: Tensor, weight_ih: Tensor, lengths: Tensor | None, gain: Tensor) -> Tensor:
    """The layer norm of W_ih x_t of all steps, computed before the recurrence."""
    if lengths is not None:  # padding may be NaN, and 0 * NaN is NaN
        x = torch.where(is_valid(lengths, x.shape[0]), x, torch.zeros_like(x))
    return layer_norm(F.linear(x, weight_ih), gain)
