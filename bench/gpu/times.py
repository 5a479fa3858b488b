"""A day's first numbers: everyone's times, each kernel's by itself, and where the time goes."""

import subprocess
from dataclasses import asdict, replace
from itertools import chain

import torch
from lstm_fused.kernels import choose

from bench.gpu import rows, speed
from bench.gpu.machine import timed
from bench.gpu.tune import kernel_times, operators
from bench.rivals import torch_lstm
from lstm_fused.backends.table import short
from tests.cases import Case


def numbers(
    sizes: list[str], dtypes: list[str], device: str, small: bool, once: bool, without: list[str]
) -> bool:
    """Ours and nn.LSTM in turn, then each kernel by itself; ``once`` only compiles what that takes."""
    torch.set_float32_matmul_precision("high")
    known = {case.name: case for case in chain(speed.SIZES, speed.TINY)}
    names = [name for name in choose.KERNELS if name not in without]
    contenders = {speed.CUDNN: speed.Contender(torch_lstm), speed.OURS: speed.ours()}
    contenders |= {f"{speed.OURS}, {name}": speed.ours(name) for name in names}
    right = True
    for case, dtype in ((known[name], getattr(torch, dtype)) for name in sizes for dtype in dtypes):
        size = {"T": case.T, "B": case.B, "I": case.I, "H": case.H, "dtype": short(dtype)}

        def ready(name: str, what: str, milliseconds: float, size: dict[str, object] = size) -> None:
            print(f"{name} {what} at first: {milliseconds:.3f} ms", flush=True)
            if not once:
                rows.add("first time", **size, who=name, what=what, milliseconds=milliseconds)

        print(f"{short(dtype)} T {case.T} B {case.B} H {case.H}", flush=True)
        row = speed.measure(case, dtype, device, contenders, small or once, ready)
        for name, reason in row.left_out.items():
            refused = "cannot run" in reason
            print(f"{'left out' if refused else 'BAD'} {name}: {reason}", flush=True)
            right &= refused
        if once:
            continue
        rows.add("speed", **asdict(row))
        for what, times in row.milliseconds.items():
            print(
                f"{what} ms: " + ", ".join(f"{who} {time:.3f}" for who, time in times.items()),
                flush=True,
            )
        steps = replace(case, T=min(case.T, 256))
        for direction, call in operators(steps, dtype, device).items():
            times, problems = kernel_times(call, device, (3, 0.0) if small else (5, 0.1), without)
            times = {name: time / steps.T for name, time in times.items()}
            rows.add("kernels", **size, direction=direction, microseconds=times, problems=problems)
            shown = ", ".join(f"{name} {time:.2f}" for name, time in times.items())
            print(f"{direction} us per step: {shown} {problems or ''}", flush=True)
    return right


def profile(device: str, small: bool, plain: bool) -> bool:
    """Where the time of the layer's two directions goes; plain, for a profiler outside."""
    case = Case("tiny", T=2, B=3, I=3, H=5) if small else Case("profiled", T=64, B=16, I=768, H=768)
    calls = operators(case, torch.bfloat16, device)
    if plain:
        for call in calls.values():
            timed(call, device)
        return True
    for call in calls.values():
        call()
    with torch.profiler.profile() as seen:
        for call in calls.values():
            timed(call, device)
    print(seen.key_averages().table(row_limit=30))
    return True


def exchange(program: str) -> bool:
    """Run the benchmark that nvcc made; each line of its says something."""
    done = subprocess.run([program], text=True, capture_output=True)
    for line in done.stdout.splitlines():
        print(line, flush=True)
        rows.add("exchange", text=line)
    print(done.stderr)
    return done.returncode == 0
