"""Scratch memory of a launch: arrival counters, and the flag that a program sets when a wait times out."""

import torch
from torch import Tensor


def zero_counters(like: Tensor, number: int) -> Tensor:
    """Arrival counters, fresh for each launch: a count left over would let a wait end too early."""
    return torch.zeros(number, dtype=torch.int32, device=like.device)


def timeout_flag(like: Tensor) -> Tensor:
    """The flag of a tensor's device, for a launch there."""
    return timeout_flag_on(like.device)


def timeout_flag_on(device: torch.device) -> Tensor:
    """The flag of a device, int32 [1]; in pinned memory, so that the host reads it without synchronizing."""
    if device not in _flags:
        pinned = device.type == "cuda"
        _flags[device] = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=pinned)
    return _flags[device]


def timed_out(device: torch.device) -> bool:
    """Whether a wait in an earlier launch on this device timed out; reading the flag clears it."""
    flag = _flags.get(device)
    found = flag is not None and bool(flag.item())
    if found:
        flag.zero_()
    return found


def raise_if_timed_out(device: torch.device) -> None:
    """Tell of a wait that timed out.

    Raises:
        RuntimeError: a wait in an earlier launch on this device timed out.
    """
    if timed_out(device):
        raise RuntimeError(
            "a program of an earlier LSTM launch on this card waited for others in vain, so that launch's "
            "results are wrong; LSTM_FUSED_GPU=step uses kernels that never wait"
        )


# Made by the first launch that may wait: others allocate nothing, for a graph may be captured meanwhile.
_flags: dict[torch.device, Tensor] = {}
