"""Which kernel runs a layer, as data: what each takes on chip, and on which card it fits.

Printed by `python -m lstm_fused.kernels.choose H B`; LSTM_FUSED_KERNEL in the environment names a kernel
that is then used or refused, never replaced.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from math import log
from typing import Any, NamedTuple

import torch
import triton
from lstm_fused.kernels.tuned import TUNED

# The fastest that fits is taken, so it stands first.
KERNELS = ("persistent", "cooperative", "resident", "step")

# Tiles of the persistent kernels and their warps, the fastest first: measured on an H200, docs/gpu/h200.md.
# One gather takes half of the pieces, but all of them where backward there are two at most.
PERSISTENT_TILES = {
    "forward": ((16, 16, 4), (16, 16, 8), (16, 32, 8), (32, 16, 8), (16, 8, 8), (32, 8, 8)),
    "backward": ((16, 16, 8), (16, 32, 8), (32, 16, 8), (16, 8, 8), (32, 8, 8)),
}

# The kernels whose programs wait for one another, and so must be on the card all at once.
WAITING = ("persistent", "cooperative")

# In how many launches a batch that does not fit at once is still better run than step by step, as
# bench/roofline.py reckons from what was measured: persistent kernels; but where cooperative ones take it
# forward in one launch, three are enough. Cooperative kernels: in two up to this H.
LAUNCHES, BESIDE_COOPERATIVE = 5, 3
TWICE = {"forward": 1024, "backward": 512}

# The cards with a maximum of two 16-bit numbers in one instruction.
NATIVE_MAXIMUM = ("sm_90", "sm_100", "sm_103", "sm_120")

# The cards, by name or capability, on which kernels whose programs wait for one another have been proven, so
# that they may be used where nobody asks for them: an H100 and an H200, docs/gpu/h200.md.
WAITING_PROVEN: tuple[str, ...] = ("sm_90",)

# Triton before 3.8 needs more registers.
BEFORE_3_8 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)

# Registers for each thread, where the assembler would rather spill a few than take more on its own.
ROOMY = 255
# Registers that a thread of a persistent kernel can fill without spilling: with weights, and in all; a card
# without that maximum can fill fewer.
HELD = {"forward": (128, 208), "backward": (96, 176)}
HELD_OLDER = (96, 152)  # backward
# Fuller plans that do not spill on Hopper's cards all the same: direction, BB, BH, PIECES.
FULLER = {("forward", 32, 16, 2): (96, 256)}


class Card(NamedTuple):
    """What the choice depends on; sizes in bytes."""

    name: str
    capability: str  # "sm_90", "gfx942"
    sms: int
    shared_per_block: int
    shared_per_sm: int


INTERPRETER = "interpreter"  # what a CPU under Triton's interpreter has for a capability

# The cards that the checks without a GPU compile for.
CARDS = (
    Card("A100", "sm_80", 108, 163 << 10, 164 << 10),
    Card("H100", "sm_90", 132, 227 << 10, 228 << 10),
    Card("B200", "sm_100", 148, 227 << 10, 228 << 10),
    Card("MI300X", "gfx942", 304, 64 << 10, 64 << 10),
)


class Layer(NamedTuple):
    """What a kernel has to run; a tuple, for every call looks its plan up by one."""

    direction: str  # "forward" or "backward"
    H: int
    B: int
    dtype: torch.dtype
    precision: str  # of float32 products: "tf32" or "ieee"
    projection: bool = False
    varied: bool = False  # whether it does anything beyond the textbook


@dataclass(frozen=True)
class Plan:
    """A kernel and its tiles: BB batch rows by BH hidden columns, BK terms of a product at a time."""

    kernel: str
    precision: str
    BB: int
    BH: int
    BK: int
    num_warps: int
    num_stages: int = 1
    maxnreg: int | None = None
    PIECES: int | None = None  # of BK terms each, that a warp of a persistent kernel gathers at once
    NATIVE: bool = False  # whether the card compares two 16-bit numbers in one instruction
    at_once: int | None = None  # batch tiles of one launch; None: all of them

    def grid(self, B: int, N: int) -> tuple[int, int]:
        """Programs for B rows and N columns."""
        return -(-B // self.BB), -(-N // self.BH)

    def waves(self, tiles: int) -> list[tuple[int, int]]:
        """The launches that so many batch tiles come in: each one's first, and their number."""
        most = self.at_once or tiles
        return [(first, min(most, tiles - first)) for first in range(0, tiles, most)]

    @cached_property
    def launched(self) -> dict[tuple[Any, ...], Any]:
        """The compiled kernels that `lstm_fused.kernels.launcher` has launched with this plan."""
        return {}

    @cached_property
    def options(self) -> dict[str, Any]:
        """What the kernel is launched with."""
        tiles = {"PRECISION": self.precision, "BB": self.BB, "BH": self.BH}
        if self.kernel != "resident":
            tiles["BK"] = self.BK
        if self.kernel in WAITING:
            tiles["launch_cooperative_grid"] = True
        if self.kernel == "persistent":
            tiles |= {"PIECES": self.PIECES, "NATIVE": self.NATIVE, "NUM_WARPS": self.num_warps}
        if self.maxnreg is not None and torch.version.hip is None:
            tiles["maxnreg"] = self.maxnreg
        return tiles | {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def shared(self, layer: Layer) -> int:
        """Bytes of shared memory; the ahead-of-time compiles hold it against what the compiler takes."""
        size, K = layer.dtype.itemsize, -(-layer.H // self.BK) * self.BK
        if self.kernel == "persistent":
            return 4 * self.num_warps * self.BB * self.BH * (4 if layer.direction == "forward" else 1)
        if self.kernel == "resident":
            return 4 * self.BH * self.BH * size + (20 << 10)
        if layer.direction == "forward":
            return (4 * self.BH + self.BB) * K * size + (2 << 10)
        return 4 * (K * self.BH + self.BB * max(self.BK, self.BH)) * size + (2 << 10)

    def terms(self, layer: Layer) -> int:
        """Terms of a product that one warp of a persistent kernel forms."""
        K = layer.H if layer.direction == "forward" else 4 * layer.H
        return -(-K // (self.num_warps * self.BK)) * self.BK

    def held(self, layer: Layer) -> tuple[int, int]:
        """Registers of a thread of a persistent kernel that hold weights, and all operands and sums."""
        forward, size = layer.direction == "forward", layer.dtype.itemsize
        N = self.BH * (4 if forward else 1)
        weights = N * self.terms(layer) * size // 128
        gathered = self.BB * self.BK * (self.PIECES or 0) * size // 128
        return weights, weights + gathered + self.BB * N // 16


def plans(kernel: str, layer: Layer) -> Iterator[Plan]:
    """The tiles that a kernel comes in, the fastest first."""
    if kernel == "step":
        half = layer.dtype.itemsize == 2
        few = layer.B <= 16 or layer.dtype == torch.float64
        BB = 16 if few else 64 if half and layer.B > 64 else 32
        yield Plan("step", layer.precision, BB, 16, 64 if half else 32, 4, 3 if half else 2)
    elif kernel == "resident":
        width = max(16, 1 << (layer.H - 1).bit_length())
        num_warps = 8 if width > 32 else 4
        yield Plan("resident", layer.precision, 16, width, width, num_warps, maxnreg=ROOMY)
    elif kernel == "persistent":
        for (BB, BH, num_warps), parts in product(PERSISTENT_TILES[layer.direction], (1, 2, 3)):
            plan = Plan("persistent", layer.precision, BB, BH, 32, num_warps, maxnreg=ROOMY)
            if layer.dtype.itemsize == 2 and plan.terms(layer) % 64 == 0:
                plan = replace(plan, BK=64)  # so that a thread loads 16 bytes at once
            pieces = plan.terms(layer) // plan.BK
            if parts > 1 or pieces <= (2 if layer.direction == "backward" else 1):
                yield replace(plan, PIECES=-(-pieces // parts))
    else:
        own_products = layer.dtype == torch.float32 and layer.precision == "ieee"  # not on tensor cores
        tight = own_products or (layer.direction == "backward" and layer.H > 768)
        maxnreg = ROOMY if tight else None
        for BB, BH in product((16, 32, 64), (8, 16)):
            yield Plan("cooperative", layer.precision, BB, BH, 128, 4, maxnreg=maxnreg)


def why_not(plan: Plan, layer: Layer, card: Card) -> list[str]:
    """Every reason why a plan cannot run a layer on a card."""
    if plan.kernel == "step":
        return []
    reasons = []
    if plan.kernel == "persistent":
        if not card.capability.startswith("sm_"):
            reasons.append("runs on NVIDIA's cards")
        if layer.dtype == torch.float64 or (layer.dtype == torch.float32 and layer.precision == "ieee"):
            reasons.append("takes products that tensor cores form")
        older = card.capability not in NATIVE_MAXIMUM
        most = HELD_OLDER if older and layer.direction == "backward" else HELD[layer.direction]
        if card.capability == "sm_90":
            most = FULLER.get((layer.direction, plan.BB, plan.BH, plan.PIECES), most)
        weights, held = plan.held(layer)
        if weights > most[0] or held > most[1] or (older and weights > 64 and plan.BB > 16):
            reasons.append("would spill registers")
    if layer.projection:
        reasons.append("takes no projection")
    if layer.varied:
        reasons.append("does the textbook's LSTM only")
    if plan.kernel == "resident" and layer.H * layer.dtype.itemsize > 256:
        reasons.append(f"takes H up to {256 // layer.dtype.itemsize} in this dtype")
    if plan.kernel == "cooperative" and layer.H > 1024:
        reasons.append("takes H up to 1024")
    if plan.kernel == "cooperative" and plan.BH < 16 and card.capability.startswith("gfx"):
        reasons.append("has no matrix instruction as narrow as that")
    cooperative, backward = plan.kernel == "cooperative", layer.direction == "backward"
    half, wide, old = layer.dtype.itemsize == 2, layer.dtype == torch.float64, card.capability == "sm_80"
    spills = (
        (cooperative and backward and (plan.BB > 16 or (plan.BH > 8 and (wide or layer.H > 128))))
        or (cooperative and backward and layer.H > 768 and (BEFORE_3_8 or not half))
        or (cooperative and half and layer.H > 512 and (plan.BB > 32 or card.capability == "sm_100"))
        or (cooperative and wide and (layer.H > 256 or (layer.H > 128 and plan.BB * plan.BH > 128)))
        or (cooperative and old and not half and layer.H > 256 and plan.BB + plan.BH > 24)
        or (plan.kernel == "resident" and card.capability.startswith("gfx"))
    )
    if spills:
        reasons.append("would spill registers")
    if plan.shared(layer) > card.shared_per_block:
        reasons.append(f"needs {plan.shared(layer)} of {card.shared_per_block} bytes of shared memory")
    elif plan.kernel in WAITING and tiles_at_once(plan, layer, card) == 0:
        reasons.append(f"needs {plan.grid(layer.B, layer.H)[1]} programs at once")
    return reasons


def tiles_at_once(plan: Plan, layer: Layer, card: Card) -> int:
    """How many batch tiles are on the card at once: registers allow a multiprocessor two programs."""
    if plan.kernel == "persistent":
        return card.sms // plan.grid(layer.B, layer.H)[1]
    programs = card.sms * min(2, card.shared_per_sm // (plan.shared(layer) + 1024))
    return programs // plan.grid(layer.B, layer.H)[1]


def fitting(kernel: str, layer: Layer, card: Card) -> list[Plan]:
    """The tiles that a kernel can run a layer with, those in the fewest launches first."""
    found = [plan for plan in plans(kernel, layer) if not why_not(plan, layer, card)]
    if kernel in WAITING:
        native = card.capability in NATIVE_MAXIMUM
        found = [replace(plan, at_once=tiles_at_once(plan, layer, card), NATIVE=native) for plan in found]
    return sorted(found, key=lambda plan: launches(plan, layer))


def launches(plan: Plan, layer: Layer) -> int:
    """How many launches a batch comes in, for the whole sequence."""
    return len(plan.waves(plan.grid(layer.B, layer.H)[0]))


@cache
def choose(layer: Layer, card: Card, kernel: str | None = None, among: tuple[str, ...] = KERNELS) -> Plan:
    """The kernel to run a layer with.

    Args:
        layer: what is to be run.
        card: where.
        kernel: the kernel's name; None takes what was measured on this card, else the first that fits.
        among: the kernels that may be taken for None.

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
    for name in order:
        for plan in fitting(name, layer, card):
            few = LAUNCHES if name == "persistent" else 1 + (TWICE[layer.direction] >= layer.H)
            if name == "persistent" and layer.direction == "forward" and in_one_launch(layer, card):
                few = BESIDE_COOPERATIVE
            if name in (kernel, best) or launches(plan, layer) <= few:
                return plan
    reasons = {reason for plan in plans(order[0], layer) for reason in why_not(plan, layer, card)}
    raise RuntimeError(f"kernel {kernel!r} cannot run {layer} on {card.name}: {'; '.join(sorted(reasons))}")


def in_one_launch(layer: Layer, card: Card) -> bool:
    """Whether the cooperative kernel takes the whole batch at once."""
    return any(launches(plan, layer) == 1 for plan in fitting("cooperative", layer, card))


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
    """The kernel that the user asks for."""
    return os.environ.get("LSTM_FUSED_KERNEL") or None


@cache
def card_at(device: torch.device) -> Card:
    """The card of a device; for the interpreter's CPU, one like that the table was made for."""
    if device.type == "cpu":
        return CARDS[1]._replace(capability=INTERPRETER)
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
    """How float32 products are to be formed, as the user told PyTorch, by its older or its newer setting."""
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer one was used, which the older does not answer for
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
            f"{card.name:<7} {direction:<9} {str(dtype)[6:]:<8} {products:<5} {plan.kernel:<12} "
            f"{rows} x {columns} programs of {plan.BB} x {plan.BH}, {plan.num_warps} warps"
            + (f", in {count} launches" if count > 1 else "")
        )


if __name__ == "__main__":
    main()
