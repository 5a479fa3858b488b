"""Kernels compiled for cards that are not here: what they take, what they are made of, what holds for all.

As a program it compiles the whole matrix, holds it against the checked-in table, and with --write replaces
that table: python tests/gpu_offline/compiled.py [--write] [--only NAME] [--missing] [--refused].
"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from lstm_fused.kernels import cooperative, persistent, resident, step
from lstm_fused.kernels.choose import CARDS, WAITING, Card, Layer, Plan, fitting, plans, why_not
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

TABLE = Path(__file__).with_name("resources.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WRITTEN_WITH = "3.8.0"  # the Triton whose code the table describes
SIZES = (64, 128, 256, 512, 768, 1024)
BATCHES = (16, 64, 256)
SPILLS = "would spill registers"  # says why_not
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp64": torch.float64}
OWN = {"fp32": torch.float32}  # products in float32's own precision, which no tensor core forms; not tabled
POINTERS = {
    "lengths": "*i64",
    "arrived": "*i32",
    "counters": "*i32",
    "late": "*i32",
    "blank": "*i32",
    "table": "*i64",
}
WIDE_POINTERS = ("xw", "c_all", "partials")
INTEGERS = ("T", "B", "node", "first", "tiles", "steps")
# What the step kernels' tables hold the addresses of, an x of the layer's dtype, a w wide; then what variants
# add, and what projections do. See lstm_fused.kernels.step.
TABLES = {
    "forward": ("wxxx-xxwxwx", "wxxxx", "-", "x"),
    "backward": ("xxxwwwxxx-x", "xxwx", "--", "xx"),
}
# The instructions worth counting, as nvdisasm spells them.
MIX = {
    "tensor": r"\b(?:HMMA|HGMMA|DMMA|UTC\w*MMA)\b",
    "global_load": r"\b(?:LDG|LDGSTS)\b",
    "global_store": r"\bSTG\b",
    "shared_load": r"\b(?:LDS|LDSM)\b",
    "shared_store": r"\bSTS\b",
    "barrier": r"\bBAR\.SYNC\b",
    "spill": r"\b(?:LDL|STL)\b",
}


@dataclass(frozen=True)
class Build:
    """One kernel for one card."""

    kernel: str
    direction: str
    kind: str
    H: int
    card: Card
    P: int = 0  # of h, where it is not H
    B: int = BATCHES[0]
    tiles: Plan | None = None  # None: those that the table picks

    @property
    def name(self) -> str:
        batch = "" if self.B in BATCHES[:1] else f" B={self.B}"
        tiles = "" if self.tiles is None else f" {self.tiles.BB}x{self.tiles.BH}"
        return f"{self.kernel} {self.direction} {self.kind} H={self.H}{batch}{tiles} {self.card.capability}"

    @property
    def layer(self) -> Layer:
        precision = "tf32" if self.kind == "tf32" else "ieee"
        return Layer(self.direction, self.H, self.B, (KINDS | OWN)[self.kind], precision)

    @property
    def function(self) -> Any:
        modules = {"step": step, "resident": resident, "cooperative": cooperative, "persistent": persistent}
        return getattr(modules[self.kernel], f"lstm_{self.direction}_{self.kernel}_kernel")

    def plan(self) -> Plan | None:
        """Its tiles, if this kernel takes this layer on this card."""
        return self.tiles or next(iter(fitting(self.kernel, self.layer, self.card)), None)

    @property
    def options(self) -> dict[str, Any] | None:
        """What the batch decides of what is compiled: builds that agree in it and all else are one."""
        plan = self.plan()
        return None if plan is None else plan.options

    def batches(self) -> list["Build"]:
        """This build for every batch that it serves."""
        others = [replace(self, B=B) for B in BATCHES]
        return [other for other in others if other.options == self.options]


def layers() -> Iterator[Build]:
    """Every kernel for every kind of layer and card, at the first batch."""
    kernels, directions = ("step", "resident", "cooperative", "persistent"), ("forward", "backward")
    for card, kernel, direction, kind, H in product(CARDS, kernels, directions, KINDS, SIZES):
        # A persistent kernel holds in bf16 what it holds in fp16, and at 64 no more than at 128.
        if kernel != "persistent" or (kind != "bf16" and SIZES[0] < H):
            yield Build(kernel, direction, kind, H, card)


def matrix() -> Iterator[Build]:
    """Everything the table may pick, each once."""
    for layer in layers():
        seen: list[Any] = [None]
        for build in (replace(layer, B=B) for B in BATCHES):
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
    """The dtypes of what a step kernel's table holds the addresses of."""
    plain, variant, no_projection, projection = TABLES[build.direction]
    letters = plain + (variant if varied else "-" * len(variant))
    letters += projection if projected else no_projection
    if build.direction == "backward":
        letters += "wx" if varied else "--"  # of the layer norm
    io = getattr(tl, {"tf32": "float32"}.get(build.kind) or str((KINDS | OWN)[build.kind])[6:])
    wide = tl.float64 if io == tl.float64 else tl.float32
    return tuple({"x": io, "w": wide, "-": None}[letter] for letter in letters)


@cache
def compile_kernel(build: Build, function: Any = None, varied: bool = False, projected: bool = False) -> Any:
    """What Triton makes of it; ``function`` stands in for the kernel, ``varied`` asks for every variant."""
    plan = build.plan()
    assert plan is not None
    function = function or build.function
    H, K = build.H, build.P or 4 * build.H
    parameters = inspect.signature(function.fn).parameters.values()
    constants = {p.name: p.default for p in parameters if p.default is not p.empty}  # what plain layers lack
    if varied:
        constants = {"CLIP": 0.7, "SHARED": False}
    constants |= {"lengths": None, "H": H, "P": build.P or H, "K": K, "REVERSE": False}
    constants |= {"N": 4 * H, "STRIDE_K": 1, "STRIDE_N": K}
    # Programmatic dependent launch is for steps of one launch.
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


def disassemble(compiled: Any, tool: str, *options: str) -> str:
    """What one of the tools in Triton's wheel says about a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run(
            [TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True
        ).stdout


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes and holds."""

    registers: int
    spilled: int  # bytes of stack
    shared: int  # bytes
    mix: dict[str, int]  # instructions


def resources(compiled: Any) -> Resources:
    """Read them from the compiled code."""
    if "cubin" not in compiled.asm:
        text = compiled.asm["amdgcn"]

        def value(key: str) -> int:
            found = re.search(rf"\.{key}:\s+(\d+)", text)
            assert found is not None, key
            return int(found[1])

        mix = {
            "tensor": len(re.findall(r"\bv_mfma", text)),
            "barrier": len(re.findall(r"\bs_barrier\b", text)),
        }
        return Resources(
            value("vgpr_count"), value("private_segment_fixed_size"), compiled.metadata.shared, mix
        )
    usage = disassemble(compiled, "cuobjdump", "-res-usage")
    code = disassemble(compiled, "nvdisasm", "-c")
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    mix = {name: len(re.findall(pattern, code)) for name, pattern in MIX.items()}
    return Resources(registers, stack, compiled.metadata.shared, mix)


def faults(build: Build, compiled: Any, found: Resources) -> list[str]:
    """Everything that must hold and does not."""
    plan, card = build.plan(), build.card
    assert plan is not None
    wrong = []
    if found.spilled or found.mix.get("spill"):
        wrong.append(f"spills {found.spilled} bytes")
    if found.shared > card.shared_per_block:
        wrong.append(f"takes {found.shared} bytes of shared memory of {card.shared_per_block}")
    if build.kernel != "step" and found.shared > plan.shared(build.layer):
        wrong.append(
            f"takes {found.shared} bytes of shared memory, the launcher reckons {plan.shared(build.layer)}"
        )
    if not found.mix["tensor"] and build.kind not in OWN:
        wrong.append("does not use the tensor cores")
    if build.kernel in WAITING:
        programs = max(at_once(served) for served in build.batches())
        if programs > card.sms * programs_per_sm(found, plan, card):
            wrong.append(f"{programs} programs are not on the card at once")
    if build.kernel != "step":
        wrong += loop_faults(compiled.asm["ttgir"])
    releases = build.kernel == "cooperative" or (build.kernel != "step" and build.direction == "backward")
    if releases and "ptx" in compiled.asm:
        wrong += release_faults(compiled.asm["ptx"])
    return wrong


def at_once(build: Build) -> int:
    """The most programs of one launch."""
    plan = build.plan()
    assert plan is not None
    rows, columns = plan.grid(build.B, build.H)
    return columns * max(tiles for _, tiles in plan.waves(rows))


def programs_per_sm(found: Resources, plan: Plan, card: Card) -> int:
    """How many are on a multiprocessor at once, by registers, shared memory and threads."""
    threads = plan.num_warps * (64 if card.capability.startswith("gfx") else 32)
    registers = -(-max(found.registers, 1) // 8) * 8 * threads
    available = 4 * 512 * 64 if card.capability.startswith("gfx") else 65536
    reserved = 0 if card.capability.startswith("gfx") else 1024
    return min(available // registers, card.shared_per_sm // (found.shared + reserved), 2048 // threads)


def loop_faults(ttgir: str) -> list[str]:
    """The recurrent weights must be loaded before the time loop, never in it."""
    pointer = re.search(r"(%weight_hh\w*): !tt\.ptr", ttgir)
    assert pointer is not None
    depends, in_loop = {pointer[1]}, False
    wrong = []
    for line in ttgir.splitlines():
        # The time loop is the one at the top level of the kernel.
        if re.match(r"    (?:%\S+ = )?scf\.for ", line):
            in_loop = True
        if re.match(r"    } loc|    }$|    } \{", line):
            in_loop = False
        found = re.match(r"\s*(%[\w#]+)(?::\d+)? = (tt\.\w+|ttg\.\w+) (.*)", line)
        if found is None or not depends & set(re.findall(r"%[\w#]+", found[3])):
            continue
        if found[2] not in ("tt.load", "ttg.async_copy_global_to_local"):
            depends.add(found[1])
        elif in_loop:
            wrong.append(f"loads recurrent weights in the time loop: {line.strip()[:120]}")
    return wrong


def release_faults(ptx: str) -> list[str]:
    """Between the last store to memory and a release there must be a barrier of the whole program."""
    wrong, stored = [], False
    releases = 0
    for line in ptx.splitlines():
        if re.search(r"\bst\.global", line):
            stored = True
        elif re.search(r"\bbar(?:rier)?\.(?:cta\.)?sync", line):
            stored = False
        elif re.search(r"\b(?:atom|red)\.\S*(?:release|acq_rel)", line):
            releases += 1
            if stored:
                wrong.append("a release with stores before it and no barrier between")
    return wrong if releases else ["no release"]


def measure(build: Build) -> tuple[dict[str, Any], list[str]]:
    """A row of the table, and what is wrong with it."""
    compiled = compile_kernel(build)
    found = resources(compiled)
    return asdict(found), faults(build, compiled, found)


def differs(row: dict[str, Any], known: dict[str, Any] | None) -> list[str]:
    """What a row has of another's; only a Triton that the table was not made with may come close instead."""
    if known is None:
        return [f"is not in {TABLE.name}"]
    if triton.__version__ == WRITTEN_WITH:
        near = row == known
    else:
        near = row["registers"] <= 1.5 * known["registers"] and row["shared"] <= 1.25 * known["shared"]
    return [] if near else [f"differs from {TABLE.name}: {known}"]


def main() -> None:
    """Compile all that may be picked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table by what is found")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--missing", action="store_true", help="rows that the table lacks")
    parser.add_argument(
        "--refused", action="store_true", help="instead what is refused for spilling; does it?"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at a time")
    arguments = parser.parse_args()
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    builds = list(refused() if arguments.refused else matrix())
    wanted = [b for b in builds if arguments.only in b.name and not (arguments.missing and b.name in known)]
    table = dict(known)
    wrong = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for build, (row, bad) in zip(wanted, pool.map(measure, wanted), strict=True):
            table[build.name] = row
            if arguments.refused:
                spills = any(reason.startswith("spills") for reason in bad)
                bad = [] if spills else ["does not spill, and is refused"]
            elif not arguments.write:
                bad += differs(row, known.get(build.name))
            wrong += [f"{build.name}: {reason}" for reason in bad]
            print(build.name, row, *bad, flush=True)
    if arguments.write and not arguments.refused:
        kept = [build.name for build in builds if build.name in table]
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(table[name])}" for name in kept)
        TABLE.write_text("{\n" + rows + "\n}\n")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
