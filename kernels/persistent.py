"""The persistent kernels: recurrent weights in registers for the whole sequence, on NVIDIA's cards.

A program owns BB batch rows by BH hidden columns, for all steps, like a cooperative kernel's. Its warps split
the product over K: each holds its slice of the weights as operands of its mma instructions, gathers its slice
of h (backward: da) from L2 straight into the other operands, and accumulates a partial sum; the partial sums
of the warps are added up through shared memory. `lstm_fused.kernels.exchange` describes how h gets from one
program to another. Written in Gluon, where layouts are explicit.

Where a batch does not fit on the card at once, a program can take `TILES` batch tiles in turn within each
step: while h of one tile is on its way through L2, it computes the next one. Backward that is chosen; forward
more launches take no longer (`IN_TURN`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import product
from math import prod
from typing import Any

import torch
from lstm_fused.kernels import launcher
from lstm_fused.kernels.launcher import BEFORE_3_8
from lstm_fused.kernels.plan import (
    MAX_REGISTERS,
    NATIVE_MAXIMUM,
    Card,
    Kernel,
    Layer,
    Plan,
    Sizes,
    Tensors,
)
from lstm_fused.kernels.scratch import timeout_flag, zero_counters
from torch import Tensor

# Tiles (BB, BH) and warps, of two with the same BB and BH the faster first; and the time of a step, in that
# of tiles of 16 x 16. Measured on an H200, docs/gpu/h200.md.
TILES = {
    "forward": {
        **{(8, 16, 4): 0.75, (8, 16, 8): 0.75, (16, 16, 4): 1.0, (16, 16, 8): 1.0},
        **{(16, 32, 8): 1.6, (32, 16, 8): 1.65, (16, 8, 8): 1.05, (32, 8, 8): 1.3},
    },
    "backward": {
        **{(8, 16, 8): 0.75, (16, 16, 8): 1.0},
        **{(16, 32, 8): 1.2, (32, 16, 8): 1.4, (16, 8, 8): 1.1, (32, 8, 8): 1.6},
    },
}

# Blocks of BK terms that a warp of a tile of 8 rows gathers at once, at most.
AT_ONCE = 4

# The time of a step in which a program takes so many batch tiles in turn, in that of a step with one tile,
# measured there too. More than two would take as long as more launches.
IN_TURN = {"forward": {1: 1.0, 2: 2.0}, "backward": {1: 1.0, 2: 1.65}}

# The most registers of a thread that the weights, and that weights, operands and sums together, can take
# without spilling, as ptxas decides; without a native 16-bit maximum the backward kernel can take fewer.
LIMITS = {"forward": (128, 208), "backward": (96, 176)}
LIMITS_OLDER_BACKWARD = (96, 152)
# Backward with 32 rows, and with 32 columns.
LIMITS_32_ROWS_BACKWARD, LIMITS_32_COLUMNS_BACKWARD = (96, 128), (80, 144)
# Forward on cards that are neither an A100's nor an H100's kind, which spill a few of the last plans.
LIMITS_OTHER_FORWARD = (128, 200)
# The same for batch tiles of 8 rows, on all cards.
LIMITS_8_ROWS = {"forward": (128, 176), "backward": (128, 168)}
# The most registers for weights beside two batch tiles in turn: direction, warps, bytes of a number; with 32
# columns fewer.
LIMITS_IN_TURN = {
    **{("forward", warps, size): most for warps, most in ((4, 64), (8, 128)) for size in (2, 4)},
    **{("backward", 8, 2): 88, ("backward", 8, 4): 64},
}
IN_TURN_32_COLUMNS = 64
LIMITS_IN_TURN_SM_90 = LIMITS_IN_TURN | {("backward", 8, 2): 96}

# Up to this duration, in launches of 16 x 16 tiles, a sequence is still faster than step by step; and forward
# up to so many launches for each of the cooperative kernel's (bench/roofline.py).
LONGEST, BESIDE_COOPERATIVE = 8, 3.5


def terms(plan: Plan, layer: Layer) -> int:
    """Terms of the product that one warp forms, padded to whole blocks of BK."""
    K = layer.H if layer.direction == "forward" else 4 * layer.H
    return -(-K // (plan.num_warps * plan.BK)) * plan.BK


def registers(plan: Plan, layer: Layer) -> tuple[int, int]:
    """Registers of a thread that hold weights; and weights, gathered operands and sums."""
    size = layer.dtype.itemsize
    N = plan.BH * (4 if layer.direction == "forward" else 1)
    weights = N * terms(plan, layer) * size // 128
    gathered = plan.BB * plan.BK * (plan.PIECES or 0) * size // 128
    return weights, weights + gathered + plan.BB * N // 16


def plans(layer: Layer) -> Iterator[Plan]:
    """The tiles, each gathering its operands in the fewest rounds first.

    Tiles of 16 rows and more gather them in one round only where a warp has few blocks of BK terms: one,
    backward two.
    """
    most_at_once = 2 if layer.direction == "backward" else 1
    for (BB, BH, num_warps), rounds, turns in product(TILES[layer.direction], (1, 2, 3, 4), (1, 2)):
        if turns > 1 and (BB != 16 or layer.B <= BB):
            continue
        plan = Plan("persistent", layer.precision, BB, BH, 32, num_warps, maxnreg=MAX_REGISTERS)
        if layer.dtype.itemsize == 2 and terms(plan, layer) % 64 == 0:
            plan = replace(plan, BK=64)  # so that a thread loads 16 bytes at once
        pieces = terms(plan, layer) // plan.BK
        at_once = -(-pieces // rounds)
        if BB == 8:
            wanted = rounds == -(-pieces // AT_ONCE)
        else:
            wanted = rounds < 4 and (rounds > 1 or pieces <= most_at_once)
        if wanted and (rounds == 1 or at_once < -(-pieces // (rounds - 1))):
            yield replace(plan, PIECES=at_once, TILES=turns)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Reasons why a plan cannot run a layer on a card."""
    reasons = []
    if not card.capability.startswith("sm_"):
        reasons.append("runs on NVIDIA's cards")
    if layer.dtype == torch.float64 or (layer.dtype == torch.float32 and layer.precision == "ieee"):
        reasons.append("takes products that tensor cores form")
    weights, every = registers(plan, layer)
    most_weights, most = limits(plan, layer, card)
    if weights > most_weights or every > most:
        reasons.append("would spill registers")
    return reasons


def limits(plan: Plan, layer: Layer, card: Card) -> tuple[int, int]:
    """The most of each of `registers` with which such a plan does not spill."""
    older = card.capability not in NATIVE_MAXIMUM
    backward = layer.direction == "backward"
    if plan.BB == 8:
        most = [LIMITS_8_ROWS[layer.direction]]
    elif backward:
        most = [LIMITS_OLDER_BACKWARD if older else LIMITS["backward"]]
    else:
        most = [LIMITS["forward"] if card.capability in ("sm_80", "sm_90") else LIMITS_OTHER_FORWARD]
    if backward and plan.BB == 32:
        most.append(LIMITS_32_ROWS_BACKWARD)
    if backward and plan.BH == 32:
        most.append(LIMITS_32_COLUMNS_BACKWARD)
    if older and plan.BB > 16:
        most.append((64, MAX_REGISTERS))
    if plan.TILES > 1:
        beside = LIMITS_IN_TURN_SM_90 if card.capability == "sm_90" and not BEFORE_3_8 else LIMITS_IN_TURN
        most.append((beside.get((layer.direction, plan.num_warps, layer.dtype.itemsize), 0), MAX_REGISTERS))
        if plan.BH == 32:
            most.append((IN_TURN_32_COLUMNS, MAX_REGISTERS))
    weights, every = zip(*most, strict=True)
    return min(weights), min(every)


def shared(plan: Plan, layer: Layer) -> int:
    """Bytes of shared memory: the partial sums of all warps."""
    return 4 * plan.num_warps * plan.BB * plan.BH * (4 if layer.direction == "forward" else 1)


def step_time(plan: Plan, layer: Layer) -> float:
    """The time of a step, in that of tiles of 16 x 16."""
    tile = plan.BB, plan.BH, plan.num_warps
    return TILES[layer.direction][tile] * IN_TURN[layer.direction][plan.TILES]


def longest(layer: Layer, shortest: Callable[[str], float]) -> float:
    """The longest duration with which it is still faster than the kernels after it."""
    beside = BESIDE_COOPERATIVE * shortest("cooperative") if layer.direction == "forward" else LONGEST
    return min(LONGEST, beside)


def function(direction: str) -> Any:
    """The kernel of a direction; imported when it is launched, because not every Triton has Gluon."""
    module = import_module(f"lstm_fused.kernels.persistent_{direction}")
    return getattr(module, f"lstm_{direction}_persistent_kernel")


def forward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the forward kernel, once for each wave of programs."""
    y = tensors[9]
    ring = ring_buffer(plan, y, Layer("forward", sizes[2], sizes[1], y.dtype, plan.precision))
    launch(plan, "forward", (*tensors, ring, timeout_flag(y)), sizes, reverse)


def backward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the backward kernel, once for each wave of programs."""
    dxw, columns = tensors[9], plan.grid(*sizes[1:])[1]
    ring = ring_buffer(plan, dxw, Layer("backward", sizes[2], sizes[1], dxw.dtype, plan.precision))
    scratch = ring, zero_counters(dxw, columns), timeout_flag(dxw)
    launch(plan, "backward", (*tensors, *scratch), sizes, reverse)


def launch(plan: Plan, direction: str, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch a kernel once for each wave of programs."""
    T, B, H = sizes
    groups, columns = plan.grid(B, H)
    for first, rows in plan.waves(groups):
        numbers = T, B, first, groups
        launcher.launch(plan, function(direction), (rows, columns), tensors, numbers, (H, reverse))


def ring_buffer(plan: Plan, like: Tensor, layer: Layer) -> Tensor:
    """The ring buffer, [RING, batch tile, gate, block, row, column]: all ones, but padding columns zero."""
    from lstm_fused.kernels.exchange import RING

    groups, columns = plan.grid(layer.B, layer.H)
    gates, published = 1 if layer.direction == "forward" else 4, columns * plan.BH
    width = plan.num_warps * terms(plan, layer) // gates
    block = plan.BK // 2  # as in `lstm_fused.kernels.exchange.place`
    shape = RING.value, groups * plan.TILES, gates, width // block, plan.BB, block
    words = -(-prod(shape) * like.itemsize // 4)
    ring = torch.full((words,), -1, dtype=torch.int32, device=like.device).view(like.dtype).view(shape)
    if width > published:
        whole, part = divmod(published, block)
        ring[:, :, :, -(-published // block) :].zero_()
        if part:
            ring[:, :, :, whole, :, part:].zero_()
    return ring


KERNEL = Kernel(
    plans=plans,
    function=function,
    constants=("BK", "PIECES", "NATIVE", "NUM_WARPS", "TILES"),
    why_not=why_not,
    shared=shared,
    programs_per_sm=lambda *_: 1,
    step_time=step_time,
    longest=longest,
    forward=forward,
    backward=backward,
)
