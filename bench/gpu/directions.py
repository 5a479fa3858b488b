"""Runs both directions of a layer at the same time: are they right, and how long do they take?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch

import lstm_fused
from bench.gpu import rows, speed
from bench.gpu.kernels import timed
from bench.gpu.looking import REPEATS, Tensors, captured, judge, repeated, say
from lstm_fused.backends import streams
from lstm_fused.backends.table import short
from lstm_fused.contract import PLAIN

DTYPE = torch.bfloat16
STEPS = 256


def run(name: str, device: str, small: bool, once: bool) -> bool:
    """Whether they are right; ``once`` only compiles what that takes."""
    case = next(case for case in (*speed.SIZES, *speed.TINY) if case.name == name)
    case = replace(case, T=min(case.T, STEPS))
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
        times: dict[str, list[float]] = {"in turn": [], "at once": []}
        for _ in range(rounds):
            times["in turn"].append(timed(partial(in_turn, call), device))
            times["at once"].append(timed(call, device))
        milliseconds = {how: 1e3 * median(found) for how, found in times.items()}
        shape = case.T, case.B, case.I, case.H
        rows.add("directions", shape=shape, dtype=short(DTYPE), what=what, milliseconds=milliseconds)
        say(f"{said} ms: {', '.join(f'{how} {time:.3f}' for how, time in milliseconds.items())}")
    return right
