"""Decides whether both directions of a layer run at the same time, each on half of the card.

`lstm_fused.backends.streams` runs them so.
"""

import os
from collections.abc import Hashable
from math import ceil, inf

import torch
from lstm_fused.kernels import guard
from lstm_fused.kernels.choose import card_at, named, precision, tiles_at_once
from lstm_fused.kernels.plan import NATIVE_MAXIMUM, Card, Layer, Plan, record

# The cards, by name or capability, on which both directions have been measured to be right and faster at the
# same time, so that they run so where nobody asks for it (docs/gpu/h200.md).
SIDE_BY_SIDE_TESTED: tuple[str, ...] = ("NVIDIA H200",)
SIDE_BY_SIDE_KERNELS = ("persistent",)  # that were measured so

# Up to this H programs for half of an A100 may take more rows than those for the whole card and still gain by
# it: predicted, not measured.
MOST_IN_TURN = 128

# Decisions of earlier calls.
_decided: dict[Hashable, bool] = {}


def side_by_side(
    by_default: bool,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    varied: bool,
    backward: bool,
) -> bool:
    """Whether both directions of a layer run at the same time.

    Args:
        by_default: whether the user did not name the engine; then the card must be in `SIDE_BY_SIDE_TESTED`.
        device: the card.
        dtype: of the tensors.
        sizes: H, B, P.
        varied: whether the layer has a variant.
        backward: whether a backward pass may follow.
    """
    H, B, P = sizes
    kind = dtype, precision(), P, varied
    key = by_default, device, H, B, *kind, backward, named(), os.environ.get("LSTM_FUSED_GPU")
    if (known := _decided.get(key)) is not None:
        return known
    directions = ("forward", "backward")[: 2 if backward else 1]
    layers = [Layer(direction, H, B, *kind) for direction in directions]
    found, for_good = decide(layers, device, by_default)
    if for_good:
        _decided[key] = found
    return found


def decide(layers: list[Layer], device: torch.device, by_default: bool) -> tuple[bool, bool]:
    """The same for the layers of one or both passes; and True if later calls can reuse the decision.

    Every pass has to gain by it, on a kernel that is right when it runs twice at the same time.
    """
    given, card = guard.setting(), card_at(device)
    if by_default and (given == "off" or not {card.name, card.capability} & set(SIDE_BY_SIDE_TESTED)):
        return False, True
    replaceable = by_default and named() is None
    for layer in layers:
        halved = layer._replace(streams=2)
        try:
            plan, in_turn = (guard.candidates(of, card, replaceable)[0] for of in (halved, layer))
        except RuntimeError:  # the kernel that is named cannot run on half of the card, or not at all
            return False, True
        untested = by_default and plan.kernel not in SIDE_BY_SIDE_KERNELS
        if untested or not pays_side_by_side(plan, in_turn, layer, card):
            return False, True
        if given == "unchecked":
            continue
        verdict = guard.judge(plan, halved, device)
        if verdict is None:
            return False, False
        if not verdict.right:
            wrong = guard.complaint("triton", plan, halved, device, verdict)
            guard.warn(wrong, "The directions of a layer run one after the other instead")
            return False, True
    return True, True


def pays_side_by_side(plan: Plan, in_turn: Plan, layer: Layer, card: Card) -> bool:
    """Whether both directions take less time at once, by a plan for half of the card, than in turn.

    What counts is in how many waves of programs a batch runs, and how long a step of each takes: twice as
    long gains nothing. Where products are slow, more rows take longer than that (bench/roofline.py).
    """
    halved = time(plan, layer._replace(streams=2), card)
    slow = card.capability not in NATIVE_MAXIMUM and layer.H > MOST_IN_TURN and plan.rows > in_turn.rows
    return plan.kernel == in_turn.kernel and not slow and halved <= 1.7 * time(in_turn, layer, card)


def time(plan: Plan, layer: Layer, card: Card) -> float:
    """The time of a step of the whole batch, as `step_time` measures it; infinite if no tile fits."""
    rows = tiles_at_once(plan, layer, card)
    waves = ceil(plan.grid(layer.B, layer.H)[0] / rows) if rows else inf
    return waves * record(plan.kernel).step_time(plan, layer)
