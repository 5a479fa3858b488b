"""One layer in one direction as a function: checks, the engine's choice, with or without gradients."""

import torch
from torch import Tensor

from lstm_fused import autocast, transforms
from lstm_fused.backends import select
from lstm_fused.checks import States, check_layer
from lstm_fused.ops import LSTMFunction, TracedLSTMFunction, forward_op


def lstm(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    weight_hr: Tensor | None = None,
    hx: States | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
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
        peephole: peephole weights p_i, p_f, p_o, shape (3H,); None has none.
        weight_hr: projection of h, shape (P, H) with P < H; None has none.
        hx: initial states h_0 (B, P or H) and c_0 (B, H); zeros by default.
        lengths: valid steps of each sequence, from 0 to T, integers of shape (B,), on any device, in any
            order. Outputs past a length are zero, states are those of the last valid step.
        reverse: run from the last valid step to the first.
        engine: "cpp", "reference" or "triton", never replaced by another; None takes the best that serves.

    Returns:
        The outputs (T, B, P or H), and the last states h_n (B, P or H) and c_n (B, H).

    Raises:
        ValueError: an argument has the wrong rank, size, dtype, device or value, or no such engine exists.
        RuntimeError: the engine cannot serve this device or dtype; the message says why.
    """
    check_layer(input, weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr, hx, lengths)
    return run_layer(
        input, weight_ih, weight_hh, bias_ih, bias_hh, peephole, weight_hr, hx, lengths, reverse, engine
    )


def run_layer(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    peephole: Tensor | None,
    weight_hr: Tensor | None,
    hx: States | None,
    lengths: Tensor | None,
    reverse: bool,
    engine: str | None,
) -> tuple[Tensor, States]:
    """`lstm` for arguments that were checked before."""
    device, dtype = input.device, autocast.computed_in(input)
    chosen = select(engine, device, dtype)
    bias = bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh
    if hx is None:
        B, H, P = input.shape[1], weight_ih.shape[0] // 4, weight_hh.shape[1]
        hx = input.new_zeros(B, P), input.new_zeros(B, H)
    if lengths is not None:
        lengths = lengths.to(device, torch.int64)
    tensors: tuple[Tensor | None, ...] = (input, weight_ih, weight_hh, bias, peephole, weight_hr, *hx)
    if autocast.enabled(device):
        tensors = tuple(None if t is None else t.to(dtype) for t in tensors)
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.compiler.is_exporting():
        differentiable = False  # a program exported takes no Function along, only what it would keep
    with autocast.off(device):
        if differentiable or transforms.active():
            function = TracedLSTMFunction if torch.compiler.is_compiling() else LSTMFunction
            y, h_n, c_n, _, _ = function.apply(chosen, *tensors, lengths, reverse)
        else:
            y, h_n, c_n, _, _ = forward_op[chosen](*tensors, lengths, reverse, False)
    return y, (h_n, c_n)
