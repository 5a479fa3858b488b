"""Which plan runs a layer, or the reference: no plan is trusted before it was right on this card once.

LSTM_FUSED_GPU in the environment says what is done where nobody asks for Triton by name: "auto" takes the
first of its plans that `lstm_fused.kernels.check` finds right, and else the reference; "off" takes the
reference; "step" only the step kernel, whose programs never wait; "unchecked" takes the first plan as it is.
A plan is checked in the first call that wants it, and never again on this machine. Where no check can run, as
while a graph is captured, only plans that were checked are taken.

By name (`engine="triton"`), or with a kernel named by LSTM_FUSED_KERNEL, nothing is ever replaced: what is
found wrong raises.
"""

import os
import warnings
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import product

import torch
from lstm_fused.kernels import check, launch, verdicts
from lstm_fused.kernels.choose import (
    KERNELS,
    WAITING,
    WAITING_PROVEN,
    Card,
    Layer,
    Plan,
    card_at,
    choose,
    fitting,
    named,
    precision,
)
from lstm_fused.kernels.verdicts import Verdict
from torch import Tensor

from lstm_fused import reference
from lstm_fused.autograd import tracing
from lstm_fused.backends import triton
from lstm_fused.contract import PLAIN, Gradients, Inputs, OutputGradients, Outputs, Saved, Variant
from lstm_fused.errors import bad, shown

SETTINGS = ("auto", "off", "step", "unchecked")
UNDECIDED = object()
# What was decided, so that all later calls look it up.
_decided: dict[Hashable, Plan | None] = {}
_warned: set[str] = set()


def forward(inputs: Inputs, unasked: bool) -> Outputs:
    """The forward pass; where it was ``unasked`` for by name, the reference may take its place."""
    plan = plan_for(unasked, "forward", inputs.x, inputs.c0, inputs.weight_hr, inputs.variant)
    return reference.forward(inputs) if plan is None else launch.forward(inputs, plan)


def backward(saved: Saved, douts: OutputGradients, unasked: bool) -> Gradients:
    """The backward pass; it may be the reference's where the forward pass was a kernel's, and vice versa."""
    plan = plan_for(unasked, "backward", saved.gates, saved.c0, saved.weight_hr, saved.variant)
    return reference.backward(saved, douts) if plan is None else launch.backward(saved, douts, plan)


def plan_for(
    unasked: bool, direction: str, steps: Tensor, c0: Tensor, weight_hr: Tensor | None, variant: Variant
) -> Plan | None:
    """The plan for a layer, given a tensor of all steps; None for the reference."""
    B, H = c0.shape
    if 0 in steps.shape[:2] or H == 0 or (weight_hr is not None and weight_hr.numel() == 0):
        return None  # nothing to launch
    kind = steps.dtype, precision(), weight_hr is not None, variant is not PLAIN
    key = direction, H, B, *kind, steps.device, unasked, named(), os.environ.get("LSTM_FUSED_GPU")
    plan = _decided.get(key, UNDECIDED)
    if plan is UNDECIDED:
        plan, for_good = decide(Layer(direction, H, B, *kind), steps.device, unasked)
        if for_good:
            _decided[key] = plan
    return plan


def setting() -> str:
    """What LSTM_FUSED_GPU says.

    Raises:
        ArgumentError: it is none of `SETTINGS`.
    """
    given = os.environ.get("LSTM_FUSED_GPU") or "auto"
    if given not in SETTINGS:
        raise bad("LSTM_FUSED_GPU", f"one of {', '.join(map(repr, SETTINGS))}", shown(given))
    return given


def decide(layer: Layer, device: torch.device, unasked: bool) -> tuple[Plan | None, bool]:
    """The plan for a layer, or None for the reference; and whether that holds for later calls too.

    Raises:
        ArgumentError: LSTM_FUSED_GPU is none of its values.
        RuntimeError: what was asked for by name cannot run here, or was found wrong.
    """
    given, why_not = setting(), triton.unavailable()  # asked again: a program may come from another machine
    if unasked and (given == "off" or why_not is not None):
        return None, True
    if why_not is not None:
        raise RuntimeError(f"engine 'triton' cannot serve: {why_not}")
    replaceable = unasked and named() is None
    plans = candidates(layer, card_at(device), replaceable)
    if given == "unchecked":
        return plans[0], True
    unknown = False
    for plan, then in zip(plans, [*plans[1:], None], strict=True):
        verdict = judge(plan, layer, device)
        if verdict is None and not replaceable:
            return plan, False
        if verdict is None:
            unknown = True
        elif verdict.right:
            return plan, not unknown
        else:
            wrong = f"Triton's {plan.kernel} kernel was not right on {verdicts.card_name(device)}: "
            wrong += f"{verdict.said} ({verdicts.name(plan, layer)})"
            if not replaceable:
                raise RuntimeError(wrong)
            warn(wrong, "reference" if then is None else f"{then.kernel} kernel")
    return None, not unknown


def candidates(layer: Layer, card: Card, replaceable: bool) -> list[Plan]:
    """The plans to try, one after the other; one alone if it is not to be replaced."""
    kernel = named() or ("step" if setting() == "step" else None)
    if kernel is not None or not replaceable:
        return [choose(layer, card, kernel)]
    kernels = list(unasked_kernels(card))
    plans = [choose(layer, card, among=tuple(kernels))]
    while plans[-1].kernel != "step":  # which takes every layer
        kernels.remove(plans[-1].kernel)
        plans.append(choose(layer, card, among=tuple(kernels)))
    return plans


def unasked_kernels(card: Card) -> tuple[str, ...]:
    """The kernels that may run where nobody names one."""
    waiting = {card.name, card.capability} & set(WAITING_PROVEN)
    return tuple(kernel for kernel in KERNELS if kernel not in WAITING or waiting)


def judge(plan: Plan, layer: Layer, device: torch.device) -> Verdict | None:
    """The verdict on a plan, from an earlier check or from one that runs now; None if none can run."""
    verdict = verdicts.find(plan, layer, device)
    if verdict is None and not tracing.watched() and not capturing(device):
        verdict = check.check(plan, layer, device)
        if verdict is not None:
            verdicts.keep(plan, layer, device, verdict)
    return verdict


def capturing(device: torch.device) -> bool:
    """Whether a graph of the user's is being captured."""
    if device.type == "cpu":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def warn(wrong: str, next_choice: str) -> None:
    """Say once what was found wrong and what runs instead."""
    if wrong not in _warned:
        _warned.add(wrong)
        warnings.warn(
            f"{wrong}. The {next_choice} runs instead. Please report this with what `python -m lstm_fused` "
            "prints; after a repair, `python -m lstm_fused --check` checks again",
            RuntimeWarning,
            stacklevel=2,
        )


# What `python -m lstm_fused --check` checks: sizes; dtypes, and how products of float32 are formed.
USUAL = tuple(product((64, 256, 512, 768, 1024), (16, 64)))  # (H, B)
KINDS = (
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
    (torch.float64, "ieee"),
)


def check_usual(device: torch.device, sizes: tuple[tuple[int, int], ...] = USUAL) -> Iterator[Verdict]:
    """Check every kernel that fits usual sizes, whatever is on record, and record what is found."""
    card, done = card_at(device), set()
    kernels = [kernel for kernel in KERNELS if kernel not in WAITING or device.type != "cpu"]
    before = torch.get_float32_matmul_precision()
    try:
        for (H, B), (dtype, products) in product(sizes, KINDS):
            torch.set_float32_matmul_precision("highest" if products == "ieee" else "high")
            for direction, kernel in product(("forward", "backward"), kernels):
                layer = Layer(direction, H, B, dtype, products)
                for plan in fitting(kernel, layer, card)[:1]:
                    name = verdicts.name(plan, layer)
                    if name not in done and (verdict := check.check(plan, layer, device)) is not None:
                        done.add(name)
                        verdicts.keep(plan, layer, device, verdict)
                        yield replace(verdict, name=name)
    finally:
        torch.set_float32_matmul_precision(before)
