"""Which kernel runs a layer on a card, from the records of the kernels and from what was measured.

`python -m lstm_fused.kernels.choose H B` prints the choices; LSTM_FUSED_KERNEL in the environment names a
kernel that is then used or refused, never replaced.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from math import inf, log

import torch
from lstm_fused.kernels.plan import (
    CARDS,
    KERNELS,
    NATIVE_MAXIMUM,
    WAITING,
    Card,
    Layer,
    Plan,
    record,
)
from lstm_fused.kernels.tuned import TUNED

# The cards, by name or capability, on which kernels whose blocks wait for one another have been measured to
# be right, so that they may run where nobody asks for them: an H100 and an H200, docs/gpu/h200.md.
WAITING_TESTED: tuple[str, ...] = ("sm_90",)

INTERPRETER = "interpreter"  # the capability of a CPU under Triton's interpreter


def plans(kernel: str, layer: Layer) -> Iterator[Plan]:
    """The tiles that a kernel comes in, the fastest first."""
    return record(kernel).plans(layer)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Every reason why a plan cannot run a layer on a card."""
    kernel = record(plan.kernel)
    reasons = kernel.why_not(plan, layer, card)
    if layer.P and not kernel.every_option:
        reasons.append("takes no projection")
    if layer.varied and not kernel.every_option:
        reasons.append("does the textbook's LSTM only")
    if plan.shared(layer) > card.shared_per_block:
        reasons.append(f"needs {plan.shared(layer)} of {card.shared_per_block} bytes of shared memory")
    elif plan.kernel in WAITING and tiles_at_once(plan, layer, card) == 0:
        reasons.append(f"needs {plan.grid(layer.B, layer.H)[1]} programs at once")
    return reasons


def tiles_at_once(plan: Plan, layer: Layer, card: Card) -> int:
    """How many rows of programs of a launch are resident at once, on its share of the card."""
    programs = card.sms // layer.streams * record(plan.kernel).programs_per_sm(plan, layer, card)
    return programs // plan.grid(layer.B, layer.H)[1]


def fitting(kernel: str, layer: Layer, card: Card) -> list[Plan]:
    """The tiles that a kernel can run a layer with, those that take the least time first."""
    found = [plan for plan in plans(kernel, layer) if not why_not(plan, layer, card)]
    if kernel in WAITING:
        native = card.capability in NATIVE_MAXIMUM
        found = [replace(plan, at_once=tiles_at_once(plan, layer, card), NATIVE=native) for plan in found]
    return sorted(found, key=lambda plan: duration(plan, layer))


def launches(plan: Plan, layer: Layer) -> int:
    """How many launches a batch takes, for the whole sequence."""
    return len(plan.waves(plan.grid(layer.B, layer.H)[0]))


def duration(plan: Plan, layer: Layer) -> float:
    """How long a step of the whole batch takes, in that of a persistent kernel's launch of 16 x 16 tiles."""
    return launches(plan, layer) * record(plan.kernel).step_time(plan, layer)


@cache
def choose(layer: Layer, card: Card, kernel: str | None = None, among: tuple[str, ...] = KERNELS) -> Plan:
    """The kernel to run a layer with.

    Args:
        layer: the layer to run.
        card: the card that it runs on.
        kernel: its name; None takes the one measured to be fastest on this card, else the first that fits.
        among: the kernels to choose from if kernel is None.

    Raises:
        ValueError: no kernel has that name.
        RuntimeError: it cannot run this layer on this card; the message says why.
    """
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {KERNELS} or None, got {kernel!r}")
    best = measured(layer, card)
    order = sorted(KERNELS, key=lambda name: name != best) if kernel is None else [kernel]
    if card.capability == INTERPRETER:  # which runs one program after another
        among = tuple(name for name in among if name not in WAITING)
    order = [name for name in order if name in (kernel, *among)]

    def shortest(name: str) -> float:
        return min((duration(plan, layer) for plan in fitting(name, layer, card)), default=inf)

    for name in order:
        for plan in fitting(name, layer, card)[:1]:
            if name in (kernel, best) or duration(plan, layer) <= record(name).longest(layer, shortest):
                return plan
    reasons = {reason for plan in plans(order[0], layer) for reason in why_not(plan, layer, card)}
    raise RuntimeError(f"kernel {kernel!r} cannot run {layer} on {card.name}: {'; '.join(sorted(reasons))}")


def measured(layer: Layer, card: Card) -> str | None:
    """The kernel that was fastest on this card at the size nearest to the layer's, if any was measured."""
    sizes = {
        (H, B): kernel
        for (name, direction, H, B, size), kernel in TUNED.items()
        if (name, direction, size) == (card.name, layer.direction, layer.dtype.itemsize)
    }
    nearest = min(
        sizes, key=lambda size: abs(log(size[0] / layer.H)) + abs(log(size[1] / layer.B)), default=None
    )
    return None if nearest is None else sizes[nearest]


def named() -> str | None:
    """The kernel that the user names in LSTM_FUSED_KERNEL, or None."""
    return os.environ.get("LSTM_FUSED_KERNEL") or None


@cache
def card_at(device: torch.device) -> Card:
    """The card of a device; for a CPU, Triton's interpreter with the sizes of an H100."""
    if device.type == "cpu":
        return CARDS[1]._replace(name="the interpreter", capability=INTERPRETER)
    p = torch.cuda.get_device_properties(device)
    arch = f"sm_{p.major}{p.minor}" if torch.version.hip is None else p.gcnArchName.split(":")[0]
    return Card(
        p.name,
        arch,
        p.multi_processor_count,
        p.shared_memory_per_block_optin if torch.version.hip is None else p.shared_memory_per_block,
        p.shared_memory_per_multiprocessor,
    )


def precision() -> str:
    """The precision of float32 products, by PyTorch's older or newer setting."""
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer setting was used, and the older cannot be read
        said = torch.backends.cuda.matmul.fp32_precision
        highest = (torch.backends.fp32_precision if said == "none" else said) != "tf32"
    return "ieee" if highest else "tf32"


def main() -> None:
    """Print the choice for every card and dtype."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("H", type=int)
    parser.add_argument("B", type=int)
    arguments = parser.parse_args()
    kinds = (
        (torch.float16, "ieee"),
        (torch.float32, "tf32"),
        (torch.float32, "ieee"),
        (torch.float64, "ieee"),
    )
    for card, direction, (dtype, products) in product(CARDS, ("forward", "backward"), kinds):
        layer = Layer(direction, arguments.H, arguments.B, dtype, products)
        plan = choose(layer, card, named())
        rows, columns = plan.grid(layer.B, layer.H)
        count = launches(plan, layer)
        print(
            f"{card.name:<8} {direction:<9} {str(dtype)[6:]:<8} {products:<5} {plan.kernel:<12} "
            f"{rows} x {columns} programs of {plan.BB} x {plan.BH}, {plan.num_warps} warps"
            + (f", {plan.TILES} tiles in turn" if plan.TILES > 1 else "")
            + (f", in {count} launches" if count > 1 else "")
        )


if __name__ == "__main__":
    main()
