"""The kernels that are compiled ahead of time, for cards that are not here: which ones, and how."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from lstm_fused.kernels.choose import fitting, plans, why_not
from lstm_fused.kernels.plan import CARDS, GLUON, KERNELS, Card, Layer, Plan, record
from lstm_fused.kernels.table import BackwardTensors, ForwardTensors
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

SIZES = (64, 128, 256, 512, 768, 1024)
# Of kernels in Gluon, which have padded columns at 650, and at 64 take no more than at 128.
GLUON_SIZES = (128, 256, 512, 650, 768, 1024)
BATCHES = (16, 64, 256)
SPILLS = "would spill registers"  # a reason of why_not
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp64": torch.float64}
# Products in full float32 precision, not on tensor cores; not in resources.json.
OWN = {"fp32": torch.float32}
POINTERS = {
    "lengths": "*i64",
    "arrived": "*i32",
    "counters": "*i32",
    "timed_out": "*i32",
    "table": "*i64",
}
WIDE_POINTERS = ("xw", "c_all", "partials")
INTEGERS = ("T", "B", "node", "first", "tiles", "groups", "steps")
# Tensors of the step kernels: in the accumulation dtype, of variants, of a projection.
STEP_TENSORS = {"forward": ForwardTensors, "backward": BackwardTensors}
WIDE_STEP_TENSORS = ("xw", "c_state", "dh_state", "dc_state", "c_all", "hw", "kept")
OF_VARIANTS = ("hw", "gain_hh", "h_mask", "zoneout_h", "kept", "zoneout_c")
OF_PROJECTION = ("weight_hr", "dh_t")


@dataclass(frozen=True)
class Build:
    """One kernel for one card."""

    kernel: str
    direction: str
    kind: str
    H: int
    card: Card
    P: int = 0  # size of h, if it is not H
    B: int = BATCHES[0]
    tiles: Plan | None = None  # None: those that are chosen
    streams: int = 1  # launches that share the card

    @property
    def name(self) -> str:
        batch = "" if self.B in BATCHES[:1] else f" B={self.B}"
        batch += " half" * (self.streams == 2)
        tiles = "" if self.tiles is None else f" {self.tiles.BB}x{self.tiles.BH}"
        tiles += f" x{self.tiles.TILES}" if self.tiles is not None and self.tiles.TILES > 1 else ""
        return f"{self.kernel} {self.direction} {self.kind} H={self.H}{batch}{tiles} {self.card.capability}"

    @property
    def layer(self) -> Layer:
        precision = "tf32" if self.kind == "tf32" else "ieee"
        dtype = (KINDS | OWN)[self.kind]
        return Layer(self.direction, self.H, self.B, dtype, precision, streams=self.streams)

    @property
    def function(self) -> Any:
        return record(self.kernel).function(self.direction)

    def plan(self) -> Plan | None:
        """The plan that is chosen; None if this kernel cannot run this layer on this card."""
        return self.tiles or next(iter(fitting(self.kernel, self.layer, self.card)), None)

    @property
    def options(self) -> dict[str, Any] | None:
        """The part of what is compiled that depends on the batch; builds that differ in no option are one."""
        plan = self.plan()
        return None if plan is None else plan.options

    def batches(self) -> list["Build"]:
        """This build for every batch that it serves, on the whole card and on half of it."""
        others = [replace(self, B=B, streams=streams) for streams, B in product((1, 2), BATCHES)]
        return [other for other in others if other.options == self.options]


def layers() -> Iterator[Build]:
    """Every kernel for every kind of layer and card, at the first batch."""
    for card, kernel, direction, kind in product(CARDS, KERNELS[::-1], ("forward", "backward"), KINDS):
        gluon = kernel in GLUON
        if not (gluon and kind == "bf16"):  # which takes what fp16 takes
            for H in GLUON_SIZES if gluon else SIZES:
                yield Build(kernel, direction, kind, H, card)


def matrix() -> Iterator[Build]:
    """Everything that may be chosen, for the whole card and for half of it, each once."""
    for layer in layers():
        seen: list[Any] = [None]
        for build in (replace(layer, B=B, streams=streams) for streams, B in product((1, 2), BATCHES)):
            if build.options not in seen:
                seen.append(build.options)
                yield build


def refused() -> Iterator[Build]:
    """Everything that is refused because it would spill, and for no other reason."""
    for build in layers():
        for plan in plans(build.kernel, build.layer):
            if why_not(plan, build.layer, build.card) == [SPILLS]:
                yield replace(build, tiles=plan)


def kinds(build: Build, varied: bool, projected: bool) -> tuple[Any, ...]:
    """The dtypes of a step kernel's tensors; all those that a variant or a projection has, but no lengths."""
    absent = ("lengths", *(() if varied else OF_VARIANTS), *(() if projected else OF_PROJECTION))
    io = getattr(tl, {"tf32": "float32"}.get(build.kind) or str((KINDS | OWN)[build.kind])[6:])
    wide = tl.float64 if io == tl.float64 else tl.float32
    return tuple(
        None if name in absent else wide if name in WIDE_STEP_TENSORS else io
        for name in STEP_TENSORS[build.direction]._fields
    )


@cache
def compile_kernel(
    build: Build,
    function: Any = None,
    varied: bool = False,
    projected: bool = False,
    uneven: bool = False,
    absent: tuple[str, ...] = (),
) -> Any:
    """Compile a kernel.

    Args:
        build: which one.
        function: replaces the build's own.
        varied: turns every variant on.
        projected: has a projection.
        uneven: takes lengths, and the sequence in reverse.
        absent: tensors that are None.
    """
    plan = build.plan()
    assert plan is not None
    function = function or build.function
    H, K = build.H, build.P or 4 * build.H
    parameters = inspect.signature(function.fn).parameters.values()
    constants = {p.name: p.default for p in parameters if p.default is not p.empty}  # no variants
    if varied:
        constants = {"CLIP": 0.7, "SHARED": False}
    constants |= {"H": H, "P": build.P or H, "K": K, "REVERSE": uneven} | (
        {} if uneven else {"lengths": None}
    )
    constants |= {"N": 4 * H, "STRIDE_K": 1, "STRIDE_N": K} | dict.fromkeys(absent)
    # Programmatic dependent launch is for steps that are one launch each.
    pdl = build.card.capability in ("sm_90", "sm_100") and not varied and not projected
    constants |= {"KINDS": kinds(build, varied, projected), "ALIGNED": True, "PDL": pdl}
    constants |= {name: value for name, value in plan.options.items() if name.isupper()}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    io = {"tf32": "fp32"}.get(build.kind, build.kind)
    wide = "fp64" if io == "fp64" else "fp32"

    def kind_of(name: str) -> str:
        if name in INTEGERS:
            return "i32"
        return POINTERS.get(name) or "*" + (wide if name in WIDE_POINTERS else io)

    signature = {n: "constexpr" if n in constants else kind_of(n) for n in function.arg_names}
    # torch allocates at multiples of 16 bytes and more; nothing is claimed about T and B.
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    of_kind = GluonASTSource if isinstance(function, GluonJITFunction) else ASTSource
    source = of_kind(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    arch = build.card.capability
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch[3:]), 32)
    options = {name: value for name, value in plan.options.items() if name.islower()}
    if build.kernel == "step" and pdl:
        options["launch_pdl"] = True
    return triton.compile(source, target=target, options=options)
