"""Decides which plan runs a layer: a plan is used only after it has agreed with the reference on this card.

The environment variable LSTM_FUSED_GPU applies if the user did not name the Triton engine. "auto" takes the
first plan that passes `lstm_fused.kernels.check`, or the reference if none does; "off" takes the reference;
"step" takes only the step kernel, whose programs never wait; "unchecked" takes the first plan as it is. The
first call that wants a plan checks it, once per machine. While no check can run, for example during graph
capture, only plans that passed an earlier check are used.

With `engine="triton"`, or with a kernel named by LSTM_FUSED_KERNEL, nothing is replaced: a failed check
raises.

The Metal engine is guarded in the same way; what differs is in a record, `Guarded`.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from lstm_fused.kernels import check, verdicts
from lstm_fused.kernels.choose import WAITING_TESTED, card_at, choose, fitting, named, precision
from lstm_fused.kernels.metal.plan import plans as metal_plans
from lstm_fused.kernels.plan import EXCHANGES, KERNELS, WAITING, Card, Layer, Plan, record
from lstm_fused.kernels.verdicts import Verdict
from torch import Tensor

from lstm_fused import reference
from lstm_fused.autograd import tracing
from lstm_fused.backends import metal, streams, triton
from lstm_fused.contract import PLAIN, Gradients, Inputs, OutputGradients, Outputs, Saved, Variant
from lstm_fused.errors import bad, shown

SETTINGS = ("auto", "off", "step", "unchecked")
UNDECIDED = object()
# Decisions of earlier calls.
_decided: dict[Hashable, Any] = {}
_warned: set[str] = set()


@dataclass(frozen=True)
class Guarded:
    """An engine whose kernels are checked."""

    name: str
    unavailable: Callable[[], str | None]  # the reason it cannot run on this machine
    precision: Callable[[], str]  # of float32 products
    # The plans for a layer on a device, in the order in which to try them; a single one if it must not be
    # replaced.
    candidates: Callable[[Layer, torch.device, bool], list[Any]]


def forward(inputs: Inputs, by_default: bool, engine: str = "triton") -> Outputs:
    """The forward pass; if the engine was not named (``by_default``), the reference may run instead."""
    plan = plan_for(by_default, "forward", inputs.x, inputs.c0, inputs.weight_hr, inputs.variant, engine)
    return reference.forward(inputs) if plan is None else plan.launch.forward(inputs, plan)


def backward(saved: Saved, douts: OutputGradients, by_default: bool, engine: str = "triton") -> Gradients:
    """The backward pass; one pass may run on the reference and the other on a kernel."""
    plan = plan_for(by_default, "backward", saved.gates, saved.c0, saved.weight_hr, saved.variant, engine)
    return reference.backward(saved, douts) if plan is None else plan.launch.backward(saved, douts, plan)


def plan_for(
    by_default: bool,
    direction: str,
    steps: Tensor,
    c0: Tensor,
    weight_hr: Tensor | None,
    variant: Variant,
    engine: str,
) -> Any:
    """The plan for a layer, or None for the reference; ``steps`` is a tensor of all steps, [T, B, ...]."""
    B, H = c0.shape
    if 0 in steps.shape[:2] or H == 0 or (weight_hr is not None and weight_hr.numel() == 0):
        return None  # nothing to launch
    guarded = GUARDED[engine]
    P = 0 if weight_hr is None else weight_hr.shape[0]
    kind = steps.dtype, guarded.precision(), P, variant is not PLAIN, streams.STATE.launches
    key = engine, direction, H, B, *kind, steps.device, by_default, named(), os.environ.get("LSTM_FUSED_GPU")
    plan = _decided.get(key, UNDECIDED)
    if plan is UNDECIDED:
        plan, for_good = decide(Layer(direction, H, B, *kind), steps.device, by_default, guarded)
        if for_good:
            _decided[key] = plan
    return plan


def setting() -> str:
    """The value of LSTM_FUSED_GPU.

    Raises:
        ArgumentError: the value is not one of `SETTINGS`.
    """
    given = os.environ.get("LSTM_FUSED_GPU") or "auto"
    if given not in SETTINGS:
        raise bad("LSTM_FUSED_GPU", f"one of {', '.join(map(repr, SETTINGS))}", shown(given))
    return given


def decide(layer: Layer, device: torch.device, by_default: bool, engine: Guarded) -> tuple[Any, bool]:
    """The plan for a layer, or None for the reference; and True if later calls can reuse the decision.

    Raises:
        ArgumentError: LSTM_FUSED_GPU has an unknown value.
        RuntimeError: an engine or kernel asked for by name cannot run here, or failed its check.
    """
    given, why_not = setting(), engine.unavailable()  # a saved program may come from another machine
    if by_default and (given == "off" or why_not is not None):
        return None, True
    if why_not is not None:
        raise RuntimeError(f"engine {engine.name!r} cannot serve: {why_not}")
    replaceable = by_default and named() is None
    plans = engine.candidates(layer, device, replaceable)
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
            wrong = complaint(engine.name, plan, layer, device, verdict)
            if not replaceable:
                raise RuntimeError(wrong)
            warn(wrong, f"The {'reference' if then is None else f'{then.kernel} kernel'} runs instead")
    return None, not unknown


def complaint(engine: str, plan: Any, layer: Layer, device: torch.device, verdict: Verdict) -> str:
    """What is wrong with a plan."""
    said = f"{engine.title()}'s {plan.kernel} kernel was not right on {verdicts.card_name(device)}"
    twice = " when it ran twice at the same time" if layer.streams > 1 else ""
    return f"{said}{twice}: {verdict.said} ({verdicts.name(plan, layer)})"


def candidates(layer: Layer, card: Card, replaceable: bool) -> list[Plan]:
    """The plans to try in order; a single one if it must not be replaced."""
    kernel = named() or (KERNELS[-1] if setting() == "step" else None)
    if kernel is not None or not replaceable:
        return [choose(layer, card, kernel)]
    kernels = list(default_kernels(card))
    plans = [choose(layer, card, among=tuple(kernels))]
    while not record(plans[-1].kernel).per_step:  # which takes every layer
        last = plans[-1]
        if last.TILES > 1:  # one batch tile of a program has run on cards
            plans += [plan for plan in fitting(last.kernel, layer, card) if plan.TILES == 1][:1]
        kernels.remove(last.kernel)
        plans.append(choose(layer, card, among=tuple(kernels)))
    return plans


def metal_candidates(layer: Layer, device: torch.device, replaceable: bool) -> list[Any]:
    """The same for Metal."""
    kernel = named() or ("step" if setting() == "step" else None)
    return metal_plans(layer, kernel)[: None if replaceable else 1]


GUARDED = {
    engine.name: engine
    for engine in (
        Guarded(
            "triton",
            lambda: triton.unavailable(),
            precision,
            lambda layer, device, replaceable: candidates(layer, card_at(device), replaceable),
        ),
        Guarded("metal", lambda: metal.unavailable(), lambda: "ieee", metal_candidates),
    )
}


def default_kernels(card: Card) -> tuple[str, ...]:
    """The kernels that may run if the user names none."""
    waiting = {card.name, card.capability} & set(WAITING_TESTED)
    return tuple(kernel for kernel in KERNELS if EXCHANGES[kernel] in ("", "launches") or waiting)


def judge(plan: Any, layer: Layer, device: torch.device) -> Verdict | None:
    """The verdict of an earlier check, or of a check that runs now; None if no check can run."""
    verdict = verdicts.find(plan, layer, device)
    if verdict is None and not tracing.watched() and not capturing(device):
        verdict = check.check(plan, layer, device)
        if verdict is not None:
            verdicts.keep(plan, layer, device, verdict)
    return verdict


def capturing(device: torch.device) -> bool:
    """True while the user captures a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def warn(wrong: str, instead: str) -> None:
    """Warn once about a failed check and say what runs instead."""
    if wrong not in _warned:
        _warned.add(wrong)
        warnings.warn(
            f"{wrong}. {instead}. Please report this with what `python -m lstm_fused` "
            "prints. Another driver, torch, Triton or version of lstm_fused is checked anew",
            RuntimeWarning,
            stacklevel=2,
        )


# What `python -m lstm_fused --check` checks: sizes, dtypes and the precision of float32 products.
USUAL = tuple(product((64, 256, 512, 768, 1024), (16, 64)))  # (H, B)
KINDS = (
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
    (torch.float64, "ieee"),
)


def check_usual(device: torch.device, sizes: tuple[tuple[int, int], ...] = USUAL) -> Iterator[Verdict]:
    """Check every kernel that fits usual sizes, ignoring earlier verdicts, and store the new ones."""
    done = set()
    for layer, plan in metal_usual(sizes) if device.type == metal.DEVICE else triton_usual(device, sizes):
        name = verdicts.name(plan, layer)
        if name not in done and (verdict := check.check(plan, layer, device)) is not None:
            done.add(name)
            verdicts.keep(plan, layer, device, verdict)
            yield replace(verdict, name=name)


def triton_usual(device: torch.device, sizes: tuple[tuple[int, int], ...]) -> Iterator[tuple[Layer, Plan]]:
    """The plans of Triton's kernels for usual sizes; PyTorch's setting of precision is theirs meanwhile."""
    card = card_at(device)
    kernels = [kernel for kernel in KERNELS if kernel not in WAITING or device.type != "cpu"]
    before = torch.get_float32_matmul_precision()
    try:
        for (H, B), (dtype, products) in product(sizes, KINDS):
            torch.set_float32_matmul_precision("highest" if products == "ieee" else "high")
            for direction, kernel in product(("forward", "backward"), kernels):
                layer = Layer(direction, H, B, dtype, products)
                for plan in fitting(kernel, layer, card)[:1]:
                    yield layer, plan
    finally:
        torch.set_float32_matmul_precision(before)


def metal_usual(sizes: tuple[tuple[int, int], ...]) -> Iterator[tuple[Layer, Any]]:
    """The plans of Metal's kernels for usual sizes, without and with every option."""
    for (H, B), dtype, direction in product(sizes, metal.DTYPES, ("forward", "backward")):
        for options in ((0, False), (H // 2, True)):
            layer = Layer(direction, H, B, dtype, "ieee", *options)
            for plan in metal_plans(layer):
                yield layer, plan
