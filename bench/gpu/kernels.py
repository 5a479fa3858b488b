"""Runs and times single kernels, by the GPU's own clock."""

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
    """The seconds that one call takes on an idle device."""
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
    """The median microseconds of a call by each kernel that can run it, and the errors of the others.

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
                times: list[float] = []
                begin = time.perf_counter()
                while len(times) < least or (time.perf_counter() - begin < seconds and len(times) < 1000):
                    times.append(timed(call, device))
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
