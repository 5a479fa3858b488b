"""Scratch memory of a launch: arrival counters, and the flag that a program sets when a wait times out."""

from functools import cache

import torch
from torch import Tensor


def zero_counters(like: Tensor, number: int) -> Tensor:
    """Arrival counters, fresh for each launch: a count left over would let a wait end too early."""
    return torch.zeros(number, dtype=torch.int32, device=like.device)


@cache
def timeout_flag_on(device: torch.device) -> Tensor:
    """The flag of a device, int32 [1]; in pinned memory, so that the host reads it without synchronizing."""
    return torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")


def timed_out(device: torch.device) -> bool:
    """Whether a wait in an earlier launch on this device timed out; reading the flag clears it."""
    flag = timeout_flag_on(device)
    found = bool(flag.item())
    if found:
        flag.zero_()
    return found


def timeout_flag(like: Tensor) -> Tensor:
    """The flag for a launch on a tensor's device.

    Raises:
        RuntimeError: a wait in an earlier launch timed out.
    """
    if timed_out(like.device):
        raise RuntimeError(
            "a program of an earlier LSTM launch on this card waited for others in vain, so that launch's "
            "results are wrong; LSTM_FUSED_GPU=step uses kernels that never wait"
        )
    return timeout_flag_on(like.device)
