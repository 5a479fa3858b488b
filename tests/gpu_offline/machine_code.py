"""Inspects compiled kernels: registers, spills, shared memory, instructions, and faults in any of them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from builds import OWN, Build
from lstm_fused.kernels.plan import EXCHANGES, FLOAT64_BY_FMA, LIKE_SM_89, WAITING, Card, Plan

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


def disassemble(compiled: Any, tool: str, *options: str) -> str:
    """The output of one of the tools in Triton's wheel for a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run(
            [TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True
        ).stdout


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses of a multiprocessor, and its instructions."""

    registers: int  # of a thread
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
    """Every requirement that compiled code does not meet."""
    plan, card = build.plan(), build.card
    assert plan is not None
    wrong = []
    if found.spilled or found.mix.get("spill"):
        wrong.append(f"spills {found.spilled} bytes")
    if found.shared > card.shared_per_block:
        wrong.append(f"takes {found.shared} bytes of shared memory of {card.shared_per_block}")
    exchange = EXCHANGES[build.kernel]
    if exchange != "launches" and found.shared > plan.shared(build.layer):
        wrong.append(f"takes {found.shared} bytes of shared memory, planned are {plan.shared(build.layer)}")
    by_fma = build.kind in OWN or (build.kind == "fp64" and card.capability in FLOAT64_BY_FMA)
    if not found.mix["tensor"] and not by_fma:
        wrong.append("does not use the tensor cores")
    if build.kernel in WAITING:
        programs = max(at_once(served) for served in build.batches())
        if programs > card.sms * programs_per_sm(found, plan, card):
            wrong.append(f"{programs} programs are not on the card at once")
    if exchange != "launches":
        wrong += loop_faults(compiled.asm["ttgir"])
    releases = exchange == "counters" or (exchange != "launches" and build.direction == "backward")
    if releases and "ptx" in compiled.asm:
        wrong += release_faults(compiled.asm["ptx"])
    return wrong


def at_once(build: Build) -> int:
    """The most programs of the launches that share the card."""
    plan = build.plan()
    assert plan is not None
    rows, columns = plan.grid(build.B, build.H)
    return build.streams * columns * max(tiles for _, tiles in plan.waves(rows))


def programs_per_sm(found: Resources, plan: Plan, card: Card) -> int:
    """Occupancy in programs of a multiprocessor, by registers, shared memory and threads."""
    threads = plan.num_warps * (64 if card.capability.startswith("gfx") else 32)
    resident = 1536 if card.capability in LIKE_SM_89 else 2048
    registers = -(-max(found.registers, 1) // 8) * 8 * threads
    available = 4 * 512 * 64 if card.capability.startswith("gfx") else 65536
    reserved = 0 if card.capability.startswith("gfx") else 1024
    return min(available // registers, card.shared_per_sm // (found.shared + reserved), resident // threads)


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
