"""Measures which kernel is the fastest at each size on this card, and writes it to kernels/tuned.py."""

import pprint
import time
from itertools import product
from pathlib import Path

import torch
from lstm_fused.kernels import choose
from lstm_fused.kernels.tuned import TUNED

from bench.gpu.kernels import kernel_times, operators, tf32
from bench.host.machine import GpuMachine
from lstm_fused.backends.table import short
from tests.cases import Case

# What matters most first.
SIZES = tuple((H, B) for B in (16, 64, 256) for H in (768, 512, 256, 1024, 128, 64))
TINY = ((5, 3),)
DTYPES = (torch.bfloat16, torch.float32)
STEPS = 128
HEAD = '''"""The kernels to take on a card instead of those that step times choose; by `make gpu-tune`."""

# (card, direction, H, B, bytes per number): kernel; float32 products in tf32.
TUNED: dict[tuple[str, str, int, int, int], str] = '''


@tf32()
def run(machine: GpuMachine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Measure what there is time for, and write the table: whether every kernel ran, and the verdict."""
    name = choose.card_at(torch.device(device, 0)).name if device == "cuda" else machine.gpu
    fastest, failed, done = dict(TUNED), 0, 0
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tuned.py"
    for (H, B), dtype in product(TINY if small else SIZES, DTYPES):
        if time.monotonic() - begin > seconds:
            print(f"no time was left for H {H}, B {B}, {short(dtype)} and what follows it")
            break
        case = Case("tuned", T=2 if small else STEPS, B=B, I=H, H=H)
        for direction, call in operators(case, dtype, device).items():
            times, errors = kernel_times(call, device, *((1, 0.0) if small else (5, 0.1)))
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
