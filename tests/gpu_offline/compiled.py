"""Compiles all kernels that may be chosen, for cards that are not here, and compares with resources.json.

With --write it replaces resources.json: python tests/gpu_offline/compiled.py [--write] [--only NAME]
[--missing] [--refused].
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton
from builds import Build, compile_kernel, matrix, refused
from machine_code import faults, resources

RESOURCES = Path(__file__).with_name("resources.json")
WRITTEN_WITH = "3.8.0"  # the Triton whose code resources.json describes
# Growth of registers that is allowed with another Triton: with 3.6.0 three plans for sm_89 take 1.52 to 1.6
# times as many.
GROWTH = {"sm_89": 1.75}


def measure(build: Build) -> tuple[dict[str, Any], list[str]]:
    """A row of resources.json, and what is wrong with it."""
    compiled = compile_kernel(build)
    found = resources(compiled)
    return asdict(found), faults(build, compiled, found)


def differs(row: dict[str, Any], known: dict[str, Any] | None, card: str) -> list[str]:
    """How a row differs from the known one; with another Triton than WRITTEN_WITH it need only come close."""
    if known is None:
        return [f"is not in {RESOURCES.name}"]
    if triton.__version__ == WRITTEN_WITH:
        near = row == known
    else:
        registers = GROWTH.get(card, 1.5) * known["registers"]
        near = row["registers"] <= registers and row["shared"] <= 1.25 * known["shared"]
    return [] if near else [f"differs from {RESOURCES.name}: {known}"]


def main() -> None:
    """Compile all that may be chosen."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="replace resources.json by what is found")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--missing", action="store_true", help="rows that resources.json lacks")
    parser.add_argument(
        "--refused",
        action="store_true",
        help="instead, the plans refused for spills: do they spill?",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many compile at a time")
    arguments = parser.parse_args()
    known = json.loads(RESOURCES.read_text()) if RESOURCES.exists() else {}
    builds = list(refused() if arguments.refused else matrix())
    wanted = [b for b in builds if arguments.only in b.name and not (arguments.missing and b.name in known)]
    found = dict(known)
    wrong = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for build, (row, bad) in zip(wanted, pool.map(measure, wanted), strict=True):
            found[build.name] = row
            if arguments.refused:
                spills = any(reason.startswith("spills") for reason in bad)
                bad = [] if spills else ["does not spill, and is refused"]
            elif not arguments.write:
                bad += differs(row, known.get(build.name), build.card.capability)
            wrong += [f"{build.name}: {reason}" for reason in bad]
            print(build.name, row, *bad, flush=True)
    if arguments.write and not arguments.refused:
        kept = [build.name for build in builds if build.name in found]
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in kept)
        RESOURCES.write_text("{\n" + rows + "\n}\n")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
