"""Runs both directions of a layer at the same time: are they right, and how long do they take?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median

import torch

import lstm_fused
from bench.gpu import rows, speed
from bench.gpu.kernels import Queued, timed
from bench.gpu.looking import REPEATS, Tensors, captured, judge, repeated, say
from lstm_fused.backends import streams
from lstm_fused.backends.table import short
from lstm_fused.contract import PLAIN

DTYPE = torch.bfloat16
STEPS = 1024


def run(name: str, device: str, small: bool, once: bool) -> bool:
    """Whether they are right; ``once`` only compiles what that takes."""
    case = next(case for case in (*speed.SIZES, *speed.TINY) if case.name == name)
    case = replace(case, T=min(case.T, 2) if small else STEPS)
    module = lstm_fused.LSTM(case.I, case.H, bidirectional=True, engine="triton", device=device, dtype=DTYPE)
    x = torch.randn(case.T, case.B, case.I, device=device, dtype=DTYPE)
    repeats, rounds = (2, 2) if small else (REPEATS // 4, 30)

    def forward() -> Tensors:
        with torch.no_grad():
            y, states = module(x)
        return [y, *states]

    def training() -> Tensors:
        y, states = module(x)
        loss = torch.stack([tensor.float().square().sum() for tensor in (y, *states)]).sum()
        return [y.detach(), *torch.autograd.grad(loss, list(module.parameters()))]

    def in_turn(call: Callable[[], Tensors]) -> Tensors:
        with streams.sharing(1):
            return call()

    if not streams.pay("triton", x, case.H, 0, PLAIN, [tuple(module.parameters())]):
        say(f"-- both directions, {name}: one after the other is all that this card does")
    right = True
    for what, call in {"forward": forward, "training": training}.items():
        with streams.sharing(2):  # by the same plans
            wanted = call()
        call()
        in_turn(call)
        if once:
            continue
        said = f"{what} of both directions, {name}"
        differing = partial(repeated, repeats, call, wanted)
        right &= judge(f"{said}, calls of {repeats} that differ from one after the other", differing, 0)
        if device == "cuda" and what == "forward":
            right &= judge(f"{said}, graphs that differ", partial(captured, call, wanted), 0)
        calls: dict[str, Callable[[], object]] = {"in turn": partial(in_turn, call), "at once": call}
        queued = {how: Queued(called, device) for how, called in calls.items()}
        times, alone = ({how: list[float]() for how in calls} for _ in range(2))
        for _, (how, called) in product(range(rounds), calls.items()):
            times[how].append(timed(called, device))
            alone[how].append(queued[how]())
        milliseconds, gpu_milliseconds = (
            {how: 1e3 * median(seconds) for how, seconds in found.items()} for found in (times, alone)
        )
        found = {"milliseconds": milliseconds, "gpu_milliseconds": gpu_milliseconds}
        rows.add("directions", shape=(case.T, case.B, case.I, case.H), dtype=short(DTYPE), what=what, **found)
        for unit, row in {"ms": milliseconds, "ms of the GPU alone": gpu_milliseconds}.items():
            say(f"{said}, {unit}: {', '.join(f'{how} {time:.3f}' for how, time in row.items())}")
    return right
