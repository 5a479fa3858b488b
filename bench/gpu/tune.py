"""Measures which kernel is the fastest at each size on this card, and writes it to kernels/tuned.py."""

import os
import pprint
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from lstm_fused.kernels import choose
from lstm_fused.kernels.tuned import TUNED

from bench.gpu.machine import Machine, milliseconds
from lstm_fused.autograd.operators import backward_op, forward_op
from lstm_fused.backends.table import short
from tests.cases import Case, make_tensors

SIZES = tuple(
    (H, B) for B in (16, 64, 256) for H in (768, 512, 256, 1024, 128, 64)
)  # what matters most first
TINY = ((5, 3),)
DTYPES = (torch.bfloat16, torch.float32)
STEPS = 128
HEAD = '''"""What was measured to be fastest, by card; `make gpu-tune` writes this file."""

# (card, direction, H, B, bytes per number): kernel; float32 products in tf32.
TUNED: dict[tuple[str, str, int, int, int], str] = '''


def run(machine: Machine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Measure what there is time for, and write the table: whether every kernel ran, and the verdict."""
    torch.set_float32_matmul_precision("high")
    name = choose.card_at(torch.device(device, 0)).name if device == "cuda" else machine.gpu
    pace = (1, 0.0) if small else (5, 0.1)
    fastest, failed = dict(TUNED), 0
    begin = time.monotonic()
    done = 0
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tuned.py"
    for (H, B), dtype in product(TINY if small else SIZES, DTYPES):
        if time.monotonic() - begin > seconds:
            print(f"no time was left for H {H}, B {B}, {short(dtype)} and what follows it")
            break
        case = Case("tuned", T=2 if small else STEPS, B=B, I=H, H=H)
        for direction, call in operators(case, dtype, device).items():
            times, errors = kernel_times(call, device, pace)
            failed += len(errors)
            for kernel, error in errors.items():
                print(f"{kernel} failed: {error}")
            if times:
                fastest[name, direction, H, B, dtype.itemsize] = min(times, key=lambda kernel: times[kernel])
                done += 1
            shown = ", ".join(f"{kernel} {time / case.T:.2f}" for kernel, time in times.items())
            print(f"H {H:<4} B {B:<3} {short(dtype):<8} {direction:<8} us per step: {shown}", flush=True)
        path.write_text(HEAD + pprint.pformat(fastest, width=100) + "\n")
    judged = f"; {failed} kernels failed" if failed else ""
    return not failed, f"{done} choices measured, written to {path}{judged}"


def kernel_times(
    call: Callable[[], object], device: str, pace: tuple[int, float], left_out: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds of a call by each kernel that can run it, and what went wrong with the others."""
    times, errors = {}, {}
    for kernel in choose.KERNELS:
        if kernel in left_out:
            continue
        try:
            with kernel_named(kernel):
                times[kernel] = 1e3 * milliseconds(call, device, *pace)
        except Exception as error:  # a kernel that fails is not chosen, and the others are measured
            if "cannot run" not in str(error):
                errors[kernel] = f"{type(error).__name__}: {str(error)[:500]}"
    return times, errors


def operators(case: Case, dtype: torch.dtype, device: str) -> dict[str, Callable[[], object]]:
    """The layer's two directions, to be called again and again."""
    t = make_tensors(case, dtype, device=device)
    names = ("x", "weight_ih", "weight_hh", "bias_ih", "peephole", "weight_hr", "h0", "c0")
    inputs = (*(t[n] for n in names), None, False, True)
    saved = forward_op["reference"](*inputs)
    gradients = (*saved, t["c0"], t["weight_hh"], t["peephole"], None, None, False)
    return {
        "forward": lambda: forward_op["triton"](*inputs),
        "backward": lambda: backward_op["triton"](*gradients),
    }


@contextmanager
def kernel_named(name: str | None) -> Iterator[None]:
    """Let the launcher take no other kernel; None leaves it the choice."""
    before = os.environ.pop("LSTM_FUSED_KERNEL", None)
    if name is not None:
        os.environ["LSTM_FUSED_KERNEL"] = name
    try:
        yield
    finally:
        os.environ.pop("LSTM_FUSED_KERNEL", None)
        if before is not None:
            os.environ["LSTM_FUSED_KERNEL"] = before
