"""Runs and times calls and single kernels, by the GPU's own clock."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from lstm_fused.kernels import choose, guard

from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends.triton import INTERPRETED
from lstm_fused.contract import Inputs, OutputGradients, Outputs, Saved, flatten
from tests.cases import Case, layer_inputs, layer_saved, make_tensors

Calls = dict[str, Callable[[], object]]


def mend_interpreter() -> None:
    """Where there is no GPU, let Triton's interpreter compute bfloat16 as a GPU does."""
    if INTERPRETED:
        import_module("tests.gpu_offline.interpreted.mending")


def timed(call: Callable[[], object], device: str) -> float:
    """The seconds that one call takes on an idle device, the host's part included."""
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


class Queued:
    """Times a call on a GPU whose queue has all launches of the call before the first of them runs.

    So the time is the GPU's own, as in a training loop whose host runs ahead of it; that of `timed` has the
    host's part in it. A kernel that waits goes first. If it ends before the host has launched everything, the
    call is timed again behind one that waits twice as long, `MOST` cycles at most: the queue holds about a
    thousand launches, and of a call with more of them the host makes the rest while the GPU runs.

    Args:
        call: what is timed.
        device: where it runs; without a GPU the time is that of `timed`.
    """

    LEAST, MOST = 2**20, 2**26  # cycles: half a millisecond to 34

    def __init__(self, call: Callable[[], object], device: str) -> None:
        self.call, self.device, self.cycles = call, device, self.LEAST

    def __call__(self) -> float:
        """The seconds of one call."""
        if self.device != "cuda":
            return timed(self.call, self.device)
        while True:
            seconds, early = self.once()
            if not early or self.cycles >= self.MOST:
                return seconds
            self.cycles *= 2

    def once(self) -> tuple[float, bool]:
        """The seconds of one call, and whether the GPU began before the host had launched all of it."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(self.cycles)
        start.record()
        self.call()
        end.record()
        early = start.query()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3, early


def problem(case: Case, dtype: torch.dtype, device: str) -> tuple[Inputs, Saved, OutputGradients]:
    """What the layer's two directions take."""
    inputs = layer_inputs(make_tensors(case, dtype, device=device))
    out = Outputs(*forward_op["reference"](*flatten(inputs)))
    return inputs, layer_saved(inputs, out), OutputGradients(*out[:3])


def operators(case: Case, dtype: torch.dtype, device: str) -> Calls:
    """The layer's two directions, to be called again and again."""
    inputs, saved, douts = problem(case, dtype, device)
    takes, takes_back = flatten(inputs), flatten(douts, saved)
    return {
        "forward": lambda: forward_op["triton"](*takes),
        "backward": lambda: backward_op["triton"](*takes_back),
    }


def one_tile_at_a_time(
    case: Case, dtype: torch.dtype, direction: str, device: str
) -> Callable[[], object] | None:
    """A call of the persistent kernel whose programs take no batch tiles in turn, so with more launches.

    None where they would take none in turn anyway.
    """
    layer = choose.Layer(direction, case.H, case.B, dtype, choose.precision())
    plans = choose.fitting("persistent", layer, choose.card_at(torch.device(device)))
    if not plans or plans[0].TILES == 1:
        return None
    plan = next(plan for plan in plans if plan.TILES == 1)
    verdict = guard.judge(plan, layer, torch.device(device))
    inputs, *saved = problem(case, dtype, device)

    def call() -> object:
        if verdict is None or not verdict.right:
            raise RuntimeError(f"one tile at a time: {verdict and verdict.said}")
        with torch.no_grad():
            forward = direction == "forward"
            return plan.launch.forward(inputs, plan) if forward else plan.launch.backward(*saved, plan)

    return call


def kernel_times(
    call: Callable[[], object], device: str, least: int, seconds: float, left_out: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """The median microseconds of the GPU for a call by each kernel that can run it, and the others' errors.

    Args:
        call: what is timed.
        device: where it runs.
        least: how often it is called at least, and before that unmeasured, to compile and to capture.
        seconds: how long it is called again and again, up to 1000 times.
        left_out: kernels that are not timed.
    """
    medians, errors = {}, {}
    for kernel in (kernel for kernel in choose.KERNELS if kernel not in left_out):
        try:
            with kernel_named(kernel):
                for _ in range(least):
                    call()
                times, queued = list[float](), Queued(call, device)
                begin = time.perf_counter()
                while len(times) < least or (time.perf_counter() - begin < seconds and len(times) < 1000):
                    times.append(queued())
                medians[kernel] = 1e6 * statistics.median(times)
        except Exception as error:  # a kernel that fails is not chosen, and the others are measured
            if "cannot run" not in str(error):
                errors[kernel] = f"{type(error).__name__}: {str(error)[:500]}"
    return medians, errors


@contextmanager
def tf32() -> Iterator[None]:
    """Let float32 products use tf32, as cuDNN's do; also a decorator."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def kernel_named(name: str | None) -> Iterator[None]:
    """Force this kernel in `choose`; None: no override."""
    before = os.environ.pop("LSTM_FUSED_KERNEL", None)
    if name is not None:
        os.environ["LSTM_FUSED_KERNEL"] = name
    try:
        yield
    finally:
        os.environ.pop("LSTM_FUSED_KERNEL", None)
        if before is not None:
            os.environ["LSTM_FUSED_KERNEL"] = before
