"""The sequence as a single launch of a kernel; where programs wait for one another, for part of the batch."""

from functools import cache

import torch
from lstm_fused.kernels.choose import Plan
from lstm_fused.kernels.cooperative import (
    lstm_backward_cooperative_kernel,
    lstm_forward_cooperative_kernel,
)
from lstm_fused.kernels.launcher import launch
from lstm_fused.kernels.resident import lstm_backward_resident_kernel, lstm_forward_resident_kernel
from torch import Tensor

from lstm_fused.contract import Inputs, OutputGradients, Saved


def forward(
    plan: Plan,
    inputs: Inputs,  # dense; x is xw [T, B, 4H], in the accumulation dtype
    y: Tensor,  # [T, B, H]
    c: Tensor | None,  # [T, B, H]
    gates: Tensor | None,  # [T, B, 4H]
) -> tuple[Tensor, Tensor]:
    """Fill y, c and gates; h_n and c_n."""
    h0, c0, reverse = inputs.h0, inputs.c0, inputs.reverse
    T, B, H = y.shape
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
    weights = inputs.weight_hh, inputs.bias, inputs.peephole
    tensors = (inputs.x, *weights, inputs.lengths, h0, c0, h_n, c_n, y, c, gates)
    rows, columns = plan.grid(B, H)
    if plan.kernel == "resident":
        launch(plan, lstm_forward_resident_kernel, (rows, 1), tensors, (T, B), (H, reverse))
        return h_n, c_n
    kernel, all_tiles = lstm_forward_cooperative_kernel, ()
    if plan.kernel == "persistent":
        from lstm_fused.kernels.persistent import RING, lstm_forward_persistent_kernel

        kernel, all_tiles = lstm_forward_persistent_kernel, (rows,)
        exchange = all_ones(y, RING.value * rows * plan.BB * columns * plan.BH)
        tensors += (exchange, blank(exchange, plan, columns * plan.BH), late(y))
    else:
        tensors += (y.new_empty(2, B, H), zero_counters(y, rows), late(y))
    for first, tiles in plan.waves(rows):
        launch(plan, kernel, (tiles, columns), tensors, (T, B, first, *all_tiles), (H, reverse))
    return h_n, c_n


def backward(
    plan: Plan,
    saved: Saved,  # dense
    douts: OutputGradients,  # dense
    dxw: Tensor,  # [T, B, 4H]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fill dxw; dh0, dc0, and the gradients of bias and peephole."""
    c, c0, reverse = saved.c, saved.c0, saved.reverse
    T, B, H = c.shape
    rows, columns = plan.grid(B, H)
    found = torch.empty_like(c0), torch.empty_like(c0), c0.new_empty(4 * H), c0.new_empty(3 * H)
    states = c, saved.gates, c0
    tensors = (*douts, *states, saved.weight_hh, saved.peephole, saved.lengths, dxw, *found)
    if plan.kernel == "resident":
        tensors += (c.new_empty(rows, 7, H), zero_counters(c, 1))
        launch(plan, lstm_backward_resident_kernel, (rows, 1), tensors, (T, B, rows), (H, reverse))
        return found
    partials, kernel = c.new_empty(rows, 7, H), lstm_backward_cooperative_kernel
    if plan.kernel == "persistent":
        from lstm_fused.kernels.persistent import RING, lstm_backward_persistent_kernel

        kernel = lstm_backward_persistent_kernel
        exchange = all_ones(dxw, RING.value * rows * plan.BB * 4 * columns * plan.BH)
        zeros = blank(exchange, plan, 4 * columns * plan.BH)
        tensors += (partials, exchange, zeros, zero_counters(c, columns), late(c))
    else:
        tensors += (partials, zero_counters(c, rows + columns), late(c))
    for first, tiles in plan.waves(rows):
        launch(plan, kernel, (tiles, columns), tensors, (T, B, first, rows), (H, reverse))
    return found


def zero_counters(like: Tensor, number: int) -> Tensor:
    """What programs count their arrivals with; a count that outlived its launch would break the next."""
    return torch.zeros(number, dtype=torch.int32, device=like.device)


def all_ones(like: Tensor, numbers: int) -> Tensor:
    """So many numbers of the tensor's dtype whose bits are all ones, which no program ever publishes."""
    words = -(-numbers * like.itemsize // 4)
    return torch.full((words,), -1, dtype=torch.int32, device=like.device).view(like.dtype)


def blank(exchange: Tensor, plan: Plan, K: int) -> Tensor:
    """Zeros, where a program gathers what none publishes: terms that only fill up a warp's share.

    Args:
        exchange: stands in where there are no such terms.
        plan: of a persistent kernel.
        K: terms of the product that are published.
    """
    return exchange.new_zeros(32) if K % (plan.num_warps * plan.BK) else exchange


@cache
def late_on(device: torch.device) -> Tensor:
    """A number that a kernel sets when it gives up waiting; the host reads it without asking the card."""
    return torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")


def gave_up(device: torch.device) -> bool:
    """Whether a program of an earlier launch on this device gave up waiting; asked again, it is forgotten."""
    number = late_on(device)
    found = bool(number.item())
    if found:
        number.zero_()
    return found


def late(like: Tensor) -> Tensor:
    """Where a program says that it gave up waiting.

    Raises:
        RuntimeError: one of an earlier launch did.
    """
    if gave_up(like.device):
        raise RuntimeError(
            "a program of an earlier LSTM launch on this card waited for others in vain, so that launch's "
            "results are wrong; LSTM_FUSED_GPU=step uses kernels that never wait"
        )
    return late_on(like.device)
