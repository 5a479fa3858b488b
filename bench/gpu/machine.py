"""The GPU and its software, and a clock for it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from bench import machine
from lstm_fused.backends.triton import INTERPRETED


@dataclass(frozen=True)
class Machine:
    """Where and with what a measurement was made."""

    gpu: str
    capability: str
    multiprocessors: int
    memory: int  # bytes
    runtime: str
    cudnn: int | None
    triton: str
    host: machine.Machine

    def __str__(self) -> str:
        return (
            f"{self.gpu} ({self.capability}, {self.multiprocessors} multiprocessors, "
            f"{self.memory >> 30} GiB), {self.runtime}, cuDNN {self.cudnn}, triton {self.triton}, "
            f"torch {self.host.torch}, python {self.host.python}, lstm_fused {self.host.lstm_fused} at "
            f"{self.host.commit}, {self.host.cpu}, {self.host.date}"
        )


def describe(device: str) -> Machine:
    """This machine, now."""
    host = machine.describe()
    if device != "cuda":
        return Machine("Triton's interpreter", "none", 0, 0, "no GPU", None, triton_version(), host)
    p: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    amd = torch.version.hip is not None
    return Machine(
        p.name,
        p.gcnArchName if amd else f"sm_{p.major}{p.minor}",
        p.multi_processor_count,
        p.total_memory,
        f"ROCm {torch.version.hip}" if amd else f"CUDA {torch.version.cuda}",
        torch.backends.cudnn.version(),
        triton_version(),
        host,
    )


def mend_interpreter() -> None:
    """Where there is no GPU, let Triton's interpreter compute bfloat16 as a GPU does."""
    if INTERPRETED:
        import_module("tests.gpu_offline.interpreted.mending")


def triton_version() -> str:
    """On AMD's cards and in nightly builds the package goes by another name."""
    import triton

    return str(triton.__version__)


def milliseconds(call: Callable[[], object], device: str, least: int, seconds: float) -> float:
    """The median time of a call, by the GPU's own clock where there is one.

    Args:
        call: what is timed.
        device: where it runs.
        least: how often it is called at least, and before that unmeasured, to compile and to capture.
        seconds: how long it is called again and again.
    """
    for _ in range(least):
        call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (time.perf_counter() - begin < seconds and len(times) < 1000):
        times.append(timed(call, device))
    return 1e3 * statistics.median(times)


def timed(call: Callable[[], object], device: str) -> float:
    """The seconds that one call takes, with nothing else under way."""
    if device != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
