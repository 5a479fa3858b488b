"""The cluster kernels: a batch tile is a thread-block cluster, whose blocks exchange through shared memory.

The card keeps the blocks of a cluster resident together, so they may wait for one another in any launch, and
further clusters may follow later. A block has BH hidden columns and BB batch rows for all steps, and the
rows of W_hh for their gates in registers. Forward, its warps multiply 16 of these rows each by all of h,
which `lstm_fused.kernels.cluster_exchange` brings into the shared memory. Backward, dh of the step before is
a sum over the gates of all blocks. A block has da of its own, so it forms its part of the sum for all
columns, and sends each block the part of that block's columns, in float32; they are added up there, always
in the same order. All of da would be twice as many bytes in half precision, and four times in float32; the
exchange is bound by its bytes.
"""

from collections.abc import Iterator
from importlib import import_module
from math import prod
from typing import Any

import torch
from lstm_fused.kernels import launcher
from lstm_fused.kernels.plan import MAX_REGISTERS, Card, Kernel, Layer, Plan, Sizes, Tensors
from lstm_fused.kernels.scratch import timeout_flag, zero_counters

# Blocks of a cluster, and how many clusters run at once, a block on each multiprocessor (H100,
# docs/gpu/logs-2026-11-27).
AT_ONCE = {8: 15, 16: 7}
# Blocks and hidden columns of a block, the fewest first.
WIDTHS = ((8, 16), (8, 32), (16, 32))
# Rows of a batch tile. With 16 a step takes twice as long (docs/gpu/h200.md).
ROWS = 8
MOST = 1024  # bytes of a row of W_hh: the registers of a warp hold as much as 16 rows
# The time of a step with so many columns of a block, in that of a persistent kernel's tiles of 16 x 16
# (docs/gpu/h200.md); and the longest duration in that time with which it is still faster than the kernels
# after the persistent one.
STEP_TIME = {("forward", 16): 0.55, ("forward", 32): 0.9, ("backward", 16): 0.5, ("backward", 32): 0.55}
LONGEST = 12
# Cards with clusters of 16 blocks.
CLUSTERED = ("sm_90", "sm_100", "sm_103")


def plans(layer: Layer) -> Iterator[Plan]:
    """The tiles: one, with the fewest blocks and columns of a block that are as many as the layer's."""
    CTAS, BH = next((width for width in WIDTHS if prod(width) >= layer.H), WIDTHS[-1])
    BK = (128 if layer.direction == "forward" else 64) // layer.dtype.itemsize
    at_once = max(1, AT_ONCE[CTAS] // layer.streams)
    yield Plan(
        "cluster", layer.precision, ROWS, BH, BK, BH // 4, maxnreg=MAX_REGISTERS, CTAS=CTAS, at_once=at_once
    )


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Reasons why a plan cannot run a layer on a card."""
    reasons = []
    if card.capability not in CLUSTERED:
        reasons.append(f"runs on {', '.join(CLUSTERED)}")
    if layer.dtype == torch.float64 or (layer.dtype == torch.float32 and layer.precision == "ieee"):
        reasons.append("takes products that tensor cores form")
    assert plan.CTAS is not None
    width = plan.CTAS * plan.BH
    if width < layer.H or width * layer.dtype.itemsize > MOST:
        reasons.append(f"takes H up to {min(MOST // layer.dtype.itemsize, prod(WIDTHS[-1]))}")
    return reasons


def shared(plan: Plan, layer: Layer) -> int:
    """Bytes of shared memory: what all blocks send in two steps, two barriers, and what a block has itself.

    That is its h; backward its da of two steps, and the sums of its columns over all steps.
    """
    assert plan.CTAS is not None
    cells, size = plan.BB * plan.BH, layer.dtype.itemsize
    if layer.direction == "forward":
        return (2 * plan.CTAS + 1) * cells * size + 16
    return 2 * cells * (plan.CTAS * 4 + 4 * size) + 16 + cells * 4


def function(direction: str) -> Any:
    """The kernel; imported when it is launched, because not every Triton has Gluon."""
    module = import_module(f"lstm_fused.kernels.cluster_{direction}")
    return getattr(module, f"lstm_{direction}_cluster_kernel")


def forward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the forward kernel, once for each wave of clusters."""
    T, B, H = sizes
    tensors = (*tensors, timeout_flag(tensors[9]))
    for first, tiles in plan.waves(plan.grid(B, H)[0]):
        launcher.launch(plan, function("forward"), (tiles, 1), tensors, (T, B, first), (H, reverse))


def backward(plan: Plan, tensors: Tensors, sizes: Sizes, reverse: bool) -> None:
    """Launch the backward kernel, once for each wave of clusters."""
    (T, B, H), dxw = sizes, tensors[9]
    every = plan.grid(B, H)[0]
    assert dxw is not None and plan.CTAS is not None
    tensors = (*tensors, zero_counters(dxw, plan.CTAS), timeout_flag(dxw))
    for first, tiles in plan.waves(every):
        numbers = T, B, first, every
        launcher.launch(plan, function("backward"), (tiles, 1), tensors, numbers, (H, reverse))


KERNEL = Kernel(
    plans=plans,
    function=function,
    constants=("BK", "CTAS", "NUM_WARPS"),
    why_not=why_not,
    shared=shared,
    programs_per_sm=lambda *_: 1,
    step_time=lambda plan, layer: STEP_TIME[layer.direction, plan.BH],
    longest=lambda layer, shortest: min(shortest("persistent"), LONGEST),
    forward=forward,
    backward=backward,
)
