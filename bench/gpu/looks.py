"""The programs of a day on a GPU: python -m bench.gpu.looks WHAT NAMES, which main lists.

A line that starts with BAD says what is wrong; the exit status is 1 then.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
from lstm_fused.kernels import choose
from torch import Tensor

import lstm_fused
from bench.cases import Setting
from bench.check import in_tf32, relative_error
from bench.gpu import directions, rows, speed
from bench.gpu.kernels import (
    Calls,
    kernel_named,
    kernel_times,
    mend_interpreter,
    one_tile_at_a_time,
    operators,
    tf32,
    timed,
)
from bench.gpu.looking import (
    REPEATS,
    Differing,
    Tensors,
    captured,
    judge,
    not_run,
    repeated,
    say,
    two_at_once,
)
from bench.host.machine import describe_gpu
from bench.peers.modules import torch_lstm
from lstm_fused.backends.table import select, short
from tests.cases import Case, make_lengths, make_tensors

BF16, FP16 = torch.bfloat16, torch.float16
DTYPES = (torch.float32, FP16, BF16, torch.float64)
# H, B, dtype and rows of a tile (None: as chosen): many programs, and more rows than fit at once.
GRIDS = {
    "H768": (768, 16, BF16, None),
    "H1024": (1024, 16, BF16, None),
    "H512": (512, 64, BF16, 16),
    "tiles-32": (1024, 64, BF16, 32),
    "tiles-64": (512, 256, FP16, 64),
    "waves": (512, 1500, FP16, None),
    "in-turn": (650, 64, BF16, 16),  # a program takes two tiles in turn, by choice or in the backward pass
    "two-at-once": (256, 16, FP16, None),
    "two-too-many": (512, 64, FP16, None),
    "graph": (256, 16, BF16, None),
    "wide": (768, 256, BF16, None),
    "rows": (128, 500, BF16, None),
}


def probe(device: str) -> bool:
    """Say what this machine is."""
    if device == "cuda":
        # Before anything else, because even this may hang.
        facts = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.used,memory.total"
        with suppress(OSError):
            subprocess.run(["nvidia-smi", f"--query-gpu={facts}", "--format=csv"], check=False)
    machine = describe_gpu(device)
    say(machine)
    rows.add("machine", **asdict(machine), processors=os.cpu_count(), node=platform.machine())
    if device == "cuda":
        say(torch.cuda.get_device_properties(0))
    return True


def smoke(kernel: str, device: str, small: bool) -> bool:
    """The smallest problems in every dtype, plain and with all that a layer may be given."""
    plain = Case("H5_B3", T=3, B=3, I=4, H=5)
    uneven = replace(plain, name="H5_B3_lengths_reverse", lengths=(3, 0, 2), reverse=True)
    lengths = tuple(n % 4 for n in range(17))
    tiles = Case("H19_B17_lengths_reverse", T=3, B=17, I=4, H=19, lengths=lengths, reverse=True)
    problems = list(product((plain, uneven) if small else (plain, tiles), DTYPES))
    engine, named = (None, None) if kernel == "default" else ("triton", kernel)
    if engine is None:  # the package may check each kernel first: fewer of them
        problems = [(tiles, torch.float32), (tiles, BF16)]
        say("engine:", select(None, torch.device(device), torch.float32), lstm_fused.engines())
    with kernel_named(named):
        right = [
            judge(f"{kernel} {case.name} {short(dtype)}", partial(error_of, engine, case, dtype, device))
            for case, dtype in problems
        ]
    return all(right)


def error_of(engine: str | None, case: Case, dtype: torch.dtype, device: str) -> float:
    """The largest error of any output or gradient, in units of the reference's own in that dtype."""
    found = outcome(engine, case, dtype, device)
    rounded = outcome("reference", case, dtype, device)
    exact = outcome("reference", case, torch.float64, device)
    tf32 = in_tf32(dtype)
    return max(relative_error(f, r, e, tf32) for f, r, e in zip(found, rounded, exact, strict=True))


def outcome(engine: str | None, case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Outputs and gradients."""
    tensors = {n: t for n, t in make_tensors(case, dtype, device=device).items() if t is not None}
    leaves = [t.requires_grad_() for t in tensors.values()]
    names = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    y, (h_n, c_n) = lstm_fused.lstm(
        *(tensors[name] for name in names),
        peephole=tensors["peephole"],
        hx=(tensors["h0"], tensors["c0"]),
        lengths=make_lengths(case, device),
        reverse=case.reverse,
        engine=engine,
    )
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(t.shape, generator=generator).bfloat16().to(device, dtype) for t in (y, h_n, c_n)]
    return (y.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad((y, h_n, c_n), leaves, douts))


def grid(kernel: str, name: str, device: str, small: bool) -> bool:
    """Many programs at once: right, and every time the same bits."""
    H, B, dtype, tile = GRIDS[name]
    case = Case(name, T=2, B=3, I=3, H=5) if small else Case(name, T=32, B=B, I=64, H=H)
    every = choose.plans

    def plans(kernel: str, layer: choose.Layer) -> list[choose.Plan]:
        """Forward tiles of so many rows alone; backward may have none such."""
        found = every(kernel, layer)
        return [plan for plan in found if layer.direction == "backward" or tile in (None, plan.BB)]

    with kernel_named(kernel), patch.object(choose, "plans", plans):
        try:
            for direction in ("forward", "backward"):
                layer = choose.Layer(direction, case.H, case.B, dtype, "ieee")
                card = choose.card_at(torch.device(device, 0) if device == "cuda" else torch.device(device))
                plan = choose.choose(layer, card, kernel)
                say(f"{direction}: {plan}, grid {plan.grid(case.B, case.H)}")
        except RuntimeError as refusal:  # there are no such tiles
            return not_run(f"{kernel} {name}", refusal)
        text = f"{kernel} {name}, H {case.H}, B {case.B}, {short(dtype)}"
        right = judge(text, partial(error_of, "triton", case, dtype, device))
        calls = operators(case, dtype, device)
        checks: dict[str, Differing] = {
            f"launches of {2 * REPEATS} that differ in bits": partial(repeated, 2 if small else REPEATS)
        }
        if device == "cuda" and "graph" in name:
            checks["graphs that differ"] = captured
        if device == "cuda" and name.startswith("two"):
            checks["launches on two streams that differ"] = two_at_once
        for what, differing in checks.items():
            right &= judge(f"{kernel} {name}, {what}", partial(count, differing, calls), 0)
    return right


def count(differing: Differing, calls: Calls) -> float:
    """How many results of both directions differ from their first ones."""
    total = 0
    for call in calls.values():

        def tensors(call: Callable[[], object] = call) -> Tensors:
            found = call()
            assert isinstance(found, tuple | list)
            return [t for t in found if isinstance(t, Tensor)]

        total += differing(tensors, tensors())
    return float(total)


@tf32()
def numbers(
    name: str, dtype: torch.dtype, device: str, small: bool, once: bool, without: Collection[str]
) -> bool:
    """Ours and nn.LSTM in turn, then each kernel by itself; ``once`` only compiles what that takes."""
    case = next(case for case in (*speed.SIZES, *speed.TINY) if case.name == name)
    shape = case.T, case.B, case.I, case.H
    say(f"{short(dtype)} T {case.T} B {case.B} H {case.H}")

    def ready(who: str, what: str, milliseconds: float) -> None:
        say(f"{who} {what} at first: {milliseconds:.3f} ms")
        if not once:
            times = {"what": what, "who": who, "milliseconds": milliseconds}
            rows.add("first time", shape=shape, dtype=short(dtype), **times)

    kernels = [kernel for kernel in choose.KERNELS if kernel not in without]
    raced = [speed.Timed(speed.CUDNN, torch_lstm), speed.ours(), *map(speed.ours, kernels)]
    raced = [replace(contestant, ready=ready) for contestant in raced]
    setting = Setting(dtype, threads=1, engine="triton", device=device)
    records = speed.raced(case, setting, raced, speed.pace(small or once))
    refused = {record.who: record.refused for record in records if record.refused}
    for who, reason in refused.items():
        say(f"{'left out' if 'cannot run' in reason else 'BAD'} {who}: {reason}")
    if not once:
        for record in records:
            if record.milliseconds is not None:
                rows.add("speed", **asdict(record))
                said = f"{record.what} ms: {record.who} {record.milliseconds:.3f}"
                say(f"{said}, of the GPU alone {record.gpu_milliseconds:.3f}")
    steps = replace(case, T=min(case.T, 256))
    pace = (1, 0.0) if once else (3, 0.0) if small else (5, 0.1)
    for direction, call in operators(steps, dtype, device).items():
        times, problems = kernel_times(call, device, *pace, without)
        if (alone := one_tile_at_a_time(steps, dtype, direction, device)) is not None:
            others = [kernel for kernel in choose.KERNELS if kernel != "persistent"]
            more, wrong = kernel_times(alone, device, *pace, others)
            times |= {f"{kernel}, one tile at a time": time for kernel, time in more.items()}
            problems |= {f"{kernel}, one tile at a time": why for kernel, why in wrong.items()}
        times = {kernel: time / steps.T for kernel, time in times.items()}
        found = {"direction": direction, "microseconds": times, "problems": problems}
        shown = ", ".join(f"{kernel} {time:.2f}" for kernel, time in times.items())
        say(f"{direction} us per step, of the GPU alone: {shown} {problems or ''}")
        if not once:
            rows.add("kernels", shape=shape, dtype=short(dtype), steps=steps.T, gpu_alone=True, **found)
    return all("cannot run" in reason for reason in refused.values())


def profile(device: str, small: bool, plain: bool) -> bool:
    """Where the time of the layer's two directions goes; plain, for a profiler outside."""
    case = Case("tiny", T=2, B=3, I=3, H=5) if small else Case("profiled", T=64, B=16, I=768, H=768)
    calls = operators(case, BF16, device).values()
    if plain:
        for call in calls:
            timed(call, device)
        return True
    for call in calls:
        call()
    with torch.profiler.profile() as seen:
        for call in calls:
            timed(call, device)
    say(seen.key_averages().table(row_limit=30))
    return True


def exchange(program: str) -> bool:
    """Run the program that nvcc made of exchange.cu; each line that it prints says something."""
    done = subprocess.run([program], text=True, capture_output=True)
    for line in done.stdout.splitlines():
        say(line)
        rows.add("exchange", text=line)
    say(done.stderr)
    return done.returncode == 0


def main() -> None:
    """Run one of the programs."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.looks", description=__doc__)
    whats = ("probe", "smoke", "grid", "numbers", "directions", "exchange", "profile")
    parser.add_argument("what", choices=whats)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda")
    for flag in ("--small", "--once", "--plain"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    parser.add_argument("--without", nargs="*", default=[])
    given = parser.parse_args()
    mend_interpreter()
    names, device, small = given.names, given.device, given.small
    dtypes = [getattr(torch, dtype) for dtype in given.dtypes]
    run: dict[str, Callable[[], list[bool]]] = {
        "probe": lambda: [probe(device)],
        "smoke": lambda: [smoke(name, device, small) for name in names],
        "grid": lambda: [grid(names[0], name, device, small) for name in names[1:]],
        "numbers": lambda: [
            numbers(name, dtype, device, small, given.once, given.without)
            for name, dtype in product(names, dtypes)
        ],
        "directions": lambda: [directions.run(name, device, small, given.once) for name in names],
        "exchange": lambda: [exchange(*names)],
        "profile": lambda: [profile(device, small, given.plain)],
    }
    sys.exit(not all(run[given.what]()))


if __name__ == "__main__":
    main()
