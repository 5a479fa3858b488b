"""The types that a choice is made of: cards, layers, plans and kernels' records; and the list of kernels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
Sizes = tuple[int, int, int]  # T, B, H

# The kernels, the fastest first, and how a program gets the h (backward: da) that others computed in the step
# before. "clusters": the blocks of its cluster send them, backward their parts of dh; "flags": it polls until
# every number is there; "counters": it waits until the others have arrived; "launches": each step is a
# launch; "": it computes all of them itself. Each kernel is a module of this name in this folder that holds
# its record, `KERNEL`.
EXCHANGES = {
    "cluster": "clusters",
    "persistent": "flags",
    "cooperative": "counters",
    "resident": "",
    "step": "launches",
}

KERNELS = tuple(EXCHANGES)
# The kernels whose programs wait for one another, and so must be resident on the card all at once.
WAITING = tuple(name for name, exchange in EXCHANGES.items() if exchange in ("flags", "counters"))
# The kernels that are written in Gluon, which Triton's interpreter does not run.
GLUON = tuple(name for name, exchange in EXCHANGES.items() if exchange in ("clusters", "flags"))
# Of every launch: multiply-adds in one rounding, which Triton 3.10 no longer makes unless it is told to.
FUSED = {"enable_fp_fusion": True}

# Steps of the problems that a kernel is checked on; the second is more than the slots of a ring buffer.
FEW_STEPS, MANY_STEPS = 4, 32

# The most registers of a thread; asked for where ptxas would otherwise spill a few rather than take more.
MAX_REGISTERS = 255


class Card(NamedTuple):
    """What the choice depends on; sizes in bytes."""

    name: str
    capability: str  # "sm_90", "gfx942"
    sms: int
    shared_per_block: int
    shared_per_sm: int


# The cards that the tests without a GPU compile for.
CARDS = (
    Card("A100", "sm_80", 108, 163 << 10, 164 << 10),
    Card("H100", "sm_90", 132, 227 << 10, 228 << 10),
    Card("B200", "sm_100", 148, 227 << 10, 228 << 10),
    Card("RTX 4090", "sm_89", 128, 99 << 10, 100 << 10),
    Card("MI300X", "gfx942", 304, 64 << 10, 64 << 10),
)


# The cards with a maximum of two 16-bit numbers in one instruction.
NATIVE_MAXIMUM = ("sm_90", "sm_100", "sm_103", "sm_120")
# Cards with 100 KB of shared memory and 1,536 threads a multiprocessor, where ptxas spills the same plans.
LIKE_SM_89 = ("sm_86", "sm_89")
# The cards on which Triton forms float64 products without tensor cores.
FLOAT64_BY_FMA = ("sm_86", "sm_87", "sm_89", "sm_120", "sm_121")


class Layer(NamedTuple):
    """What a kernel has to run; a tuple, because every call looks its plan up by one."""

    direction: str  # "forward" or "backward"
    H: int
    B: int
    dtype: torch.dtype
    precision: str  # of float32 products: "tf32" or "ieee"
    P: int = 0  # size of a projected h; 0 without a projection
    varied: bool = False  # whether it has a `lstm_fused.contract.Variant`
    streams: int = 1  # launches that share the card: 2 where both directions run at the same time


@dataclass(frozen=True)
class Plan:
    """A kernel and its tile: BB batch rows by BH hidden columns, products in blocks of BK terms."""

    kernel: str
    precision: str
    BB: int
    BH: int
    BK: int
    num_warps: int
    num_stages: int = 1
    maxnreg: int | None = None
    PIECES: int | None = None  # blocks of BK terms that a warp of a persistent kernel gathers at once
    NATIVE: bool = False  # whether the card has a maximum of two 16-bit numbers in one instruction
    TILES: int = 1  # batch tiles that a program of a persistent kernel takes in turn within each step
    CTAS: int | None = None  # blocks of a cluster
    at_once: int | None = None  # rows of programs of one launch; None: all of them

    @property
    def launch(self) -> Any:
        """The module that runs a layer with this plan."""
        return import_module("lstm_fused.kernels.launch")

    @property
    def NUM_WARPS(self) -> int:
        """The number of warps, by the name that Gluon kernels take it by."""
        return self.num_warps

    @property
    def rows(self) -> int:
        """The batch rows of a program."""
        return self.BB * self.TILES

    def problems(self, layer: Layer) -> list[tuple[Layer, int]]:
        """The layers and numbers of steps to check before this plan may run a layer.

        Layers with the same problems have one verdict. H and P are compiled in, so that no other layer's
        code is this one's.
        """
        ring = EXCHANGES[self.kernel] in ("flags", "clusters")
        return [(layer, steps) for steps in (FEW_STEPS, MANY_STEPS)[: 2 if ring else 1]]

    def grid(self, B: int, N: int) -> tuple[int, int]:
        """Programs for B rows and N columns."""
        return -(-B // self.rows), -(-N // self.BH)

    def waves(self, rows: int) -> list[tuple[int, int]]:
        """The launches that so many rows of programs take, a full wave each: (first row, rows)."""
        most = self.at_once or rows
        return [(first, min(most, rows - first)) for first in range(0, rows, most)]

    @cached_property
    def launched(self) -> dict[tuple[Any, ...], Any]:
        """The compiled kernels that `lstm_fused.kernels.launcher` has launched with this plan."""
        return {}

    @cached_property
    def options(self) -> dict[str, Any]:
        """The constants and options of a launch."""
        options = {"PRECISION": self.precision, "BB": self.BB, "BH": self.BH}
        options |= {name: getattr(self, name) for name in record(self.kernel).constants}
        if self.kernel in WAITING:
            options["launch_cooperative_grid"] = True
        if self.CTAS is not None:
            options["num_ctas"] = self.CTAS
        if self.maxnreg is not None and torch.version.hip is None:
            options["maxnreg"] = self.maxnreg
        return options | {"num_warps": self.num_warps, "num_stages": self.num_stages} | FUSED

    def shared(self, layer: Layer) -> int:
        """Bytes of shared memory; ahead-of-time compilation checks that the compiler needs no more."""
        return record(self.kernel).shared(self, layer)


def two_programs_per_sm(plan: Plan, layer: Layer, card: Card) -> int:
    """Occupancy in programs of a multiprocessor: registers allow two, if shared memory does."""
    return min(2, card.shared_per_sm // (plan.shared(layer) + 1024))


@dataclass(frozen=True)
class Kernel:
    """What is to be known of a kernel to choose it, to compile it and to launch it.

    The launchers take the plan, the kernel's tensors but for its scratch memory, sizes, and reverse.
    """

    plans: Callable[[Layer], Iterator[Plan]]  # its tiles for a layer, the fastest first
    function: Callable[[str], Any]  # the Triton function of a direction
    constants: tuple[str, ...] = ()  # fields of a plan that it is compiled for, besides PRECISION, BB and BH
    every_option: bool = False  # whether it runs projections and variants
    why_not: Callable[[Plan, Layer, Card], list[str]] = lambda *_: []  # reasons why a plan cannot run a layer
    shared: Callable[[Plan, Layer], int] = lambda *_: 0  # bytes
    programs_per_sm: Callable[[Plan, Layer, Card], int] = two_programs_per_sm
    # The time of a step by a plan, in that of a persistent kernel's with tiles of 16 x 16.
    step_time: Callable[[Plan, Layer], float] = lambda *_: 1.0
    # The longest duration of a batch (`lstm_fused.kernels.choose.duration`) with which it is still faster
    # than the kernels after it, given the shortest of another kernel.
    longest: Callable[[Layer, Callable[[str], float]], float] = lambda *_: 1
    # Launchers of whole sequences; None if `lstm_fused.kernels.steps` launches each step.
    forward: Callable[[Plan, Tensors, Sizes, bool], None] | None = None
    backward: Callable[[Plan, Tensors, Sizes, bool], None] | None = None

    @property
    def per_step(self) -> bool:
        """Whether each step is a launch: then its programs never wait, and it must take every layer."""
        return self.forward is None


@cache
def record(kernel: str) -> Kernel:
    """The record of a kernel; imported when it is asked for, because its module needs Triton."""
    found: Kernel = import_module(f"lstm_fused.kernels.{kernel}").KERNEL
    return found
