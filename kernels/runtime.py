"""The CUDA or HIP runtime that PyTorch has loaded: calls of its functions, and streams that no user has."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

RELAXED = 2  # the capture mode that forbids a thread nothing
NON_BLOCKING = 1  # a stream that does not synchronize with the default one


@cache
def library() -> tuple[ctypes.CDLL, str]:
    """The runtime, and the prefix of its functions."""
    return ctypes.CDLL(torch._C.__file__), "cuda" if torch.version.hip is None else "hip"


def call(name: str, *arguments: Any) -> None:
    """Call a function of the runtime.

    Raises:
        RuntimeError: it failed.
    """
    loaded, prefix = library()
    code = loaded[prefix + name](*arguments)
    if code != 0:
        loaded[prefix + "GetLastError"]()  # or PyTorch would report the error as its own
        raise RuntimeError(f"{prefix}{name}: error {code}")


@contextmanager
def relaxed() -> Iterator[None]:
    """Calls of this thread neither fail because of another thread's capture nor invalidate it."""
    mode = ctypes.c_int(RELAXED)
    call("ThreadExchangeStreamCaptureMode", ctypes.byref(mode))  # mode is now the previous one
    try:
        yield
    finally:
        call("ThreadExchangeStreamCaptureMode", ctypes.byref(mode))


def new_stream(device: torch.device, priority: int = 0) -> torch.cuda.ExternalStream:
    """A stream of our own; PyTorch's are from a pool that users share, and that goes round."""
    stream = ctypes.c_void_p()
    with relaxed(), torch.cuda.device(device):
        flags = ctypes.c_uint(NON_BLOCKING)
        call("StreamCreateWithPriority", ctypes.byref(stream), flags, ctypes.c_int(priority))
    return torch.cuda.ExternalStream(int(stream.value or 0), device=device)
