"""Dispatches kernels: their structs, the sizes of grids, the steps of a pass, and command buffers."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from lstm_fused.kernels.metal.plan import Plan
from torch import Tensor

from lstm_fused.contract import Variant
from lstm_fused.reference import time_steps


class Layer(NamedTuple):
    """The struct of this name in cell.metal, field by field."""

    T: int
    B: int
    H: int
    P: int
    B8: int
    H8: int
    P8: int
    reverse: int
    peephole: int
    lengths: int
    save: int
    dy: int
    projection: int
    norm: int
    h_mask: int
    zoneout_h: int
    zoneout_c: int
    clip: int
    zoneout_h_t: int
    zoneout_h_b: int
    zoneout_c_t: int
    zoneout_c_b: int


class Step(NamedTuple):
    """The struct of this name in cell.metal, field by field."""

    t: int
    after: int
    before: int
    parity: int


class Span(NamedTuple):
    """The struct of this name in resident.metal, field by field."""

    begin: int
    end: int


def layer_of(
    plan: Plan,
    T: int,
    B: int,
    H: int,
    P: int,
    reverse: bool,
    peephole: Tensor | None,
    lengths: Tensor | None,
    save: bool,
    dy: Tensor | None,
    weight_hr: Tensor | None,
    variant: Variant,
) -> Layer:
    """The first argument of every kernel."""
    strides = [
        stride
        for zoneout in (variant.zoneout_h, variant.zoneout_c)
        for stride in ((0, 0) if zoneout is None else zoneout.stride()[:2])
    ]
    given = peephole, lengths, save or None, dy, weight_hr, variant.gain_hh, variant.h_mask
    given = *given, variant.zoneout_h, variant.zoneout_c, variant.cell_clip
    sizes = T, B, H, P, rounded_up(B, plan.BB), rounded_up(H, 8), rounded_up(P, 8)
    return Layer(*sizes, int(reverse), *[int(option is not None) for option in given], *strides)


def steps(T: int, reverse: bool) -> Iterator[Step]:
    """The steps of a forward pass, in order."""
    for n, t in enumerate(time_steps(T, reverse)):
        yield Step(t, -1, -1, n % 2)


def steps_back(T: int, reverse: bool) -> Iterator[Step]:
    """The steps of a backward pass, in order, and one more, which computes the gradient of h0."""
    order = [-1, *reversed(list(time_steps(T, reverse))), -1, -1]
    for n in range(T + 1):
        yield Step(order[n + 1], order[n], order[n + 2], n % 2)


def dispatch(kernel: Any, size: tuple[int, int], layer: Layer, *tensors: Tensor) -> Callable[[Any], None]:
    """A function that runs a kernel on so many threadgroups of so many threads, given a step or a span."""
    groups, threads = size

    def run(which: Step | Span) -> None:
        kernel(layer, which, *tensors, threads=groups * threads, group_size=threads)

    return run


def tiles(plan: Plan, rows: int, columns: int) -> tuple[int, int]:
    """Threadgroups of the step kernels for so many rows and columns, and their threads."""
    return rows // plan.BB * (columns // 8), 128


def run_resident(kernel: Any, plan: Plan, layer: Layer, steps: int, *tensors: Tensor) -> None:
    """Run a resident kernel over all steps of a pass; few dispatches, each of a bounded time."""
    run = dispatch(kernel, (layer.B8 // 8, layer.H8 // 8 * 32), layer, *tensors)
    at_once = plan.steps_at_once(layer.B8, layer.H8, layer.P8)
    for begin in range(0, steps, at_once):
        if begin > 0:
            commit()
        run(Span(begin, min(begin + at_once, steps)))


def in_command_buffers(steps: Iterator[Step], plan: Plan, layer: Layer) -> Iterator[Step]:
    """The steps, with a commit between those that are too many for one command buffer."""
    at_once = plan.steps_at_once(layer.B8, layer.H8, layer.P8)
    for number, step in enumerate(steps):
        if number > 0 and number % at_once == 0:
            commit()
        yield step


def commit() -> None:
    """End the command buffer, and have the GPU start with it; PyTorch itself does so only to wait for it."""
    torch.mps.event.Event().record()


def rounded_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not less than a size."""
    return -(-size // multiple) * multiple
