"""Runs the tests on the GPU in several processes at once, and some of them under compute-sanitizer."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench.gpu import jobs
from bench.gpu.commands import SANITIZED, TOOLS, limited, pytest, under
from bench.gpu.jobs import Ended, Job
from bench.host.machine import GpuMachine

TESTS = ("tests",)  # but those that no device changes, which tests/conftest.py leaves out
SMALL = ("tests/gpu", "-k", "same_bits or (saved and float64)")
MOST = 16  # processes; each needs a gigabyte of the GPU's memory, and most of their time goes to compiling
PAST_31 = "past_two_to_the_31"  # takes 28 GB each, so one at a time and with nobody beside it
ALONE = 60.0  # seconds for them
ONE_TEST = 60  # seconds


def run(machine: GpuMachine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Run the tests: whether all is right, and the verdict. The output of each process is in out/check."""
    if find_spec("pytest") is None:
        return False, f"nothing was checked: {sys.executable} has no pytest"
    begin = time.monotonic()
    folder = out / "check"
    folder.mkdir(parents=True, exist_ok=True)
    tools = {tool: prefix for tool in TOOLS if (prefix := under(tool, device))}
    most = min(MOST, os.cpu_count() or 1, machine.memory >> 30) - len(tools)
    parts = 2 if small else max(1, most)
    each = partial(pytest, device, "-v", *limited(ONE_TEST))
    apart = SMALL if small else (*TESTS, "-k", f"not {PAST_31}")
    commands = {f"part {k}": each(*apart, "--part", f"{k}/{parts}") for k in range(parts)}
    commands |= {tool: [*prefix, *pytest(device, "-q", *SANITIZED)] for tool, prefix in tools.items()}
    if not tools:
        print("compute-sanitizer is not installed: left out")
    alone = 0.0 if device != "cuda" or small else ALONE
    ended = asyncio.run(every(commands, seconds - alone, folder))
    if alone:
        ended |= asyncio.run(every({"alone": each("tests/gpu", "-k", PAST_31)}, alone, folder))
    wrong: list[str] = []
    passed = 0
    for name, job in ended.items():
        if name in TOOLS:
            print(judge_sanitizer(name, job))
            continue
        found = jobs.judge("check", name, job)
        passed += found.tests.get("PASSED", 0)
        if found.outcome != "right":
            print(f"\n==== {name}\n{job.text[-6000:]}", flush=True)
            wrong += jobs.lines(found)[:1] + found.failed
    if not passed:
        wrong.append("no test passed")
    print("\n".join(wrong))
    judged = f"{len(wrong)} things are wrong" if wrong else "every result is right"
    return not wrong, f"{judged}, {passed} tests passed in {time.monotonic() - begin:.0f} s"


async def every(commands: Mapping[str, list[str]], seconds: float, folder: Path) -> dict[str, Ended]:
    """Run commands at once."""
    started = []
    for name, command in commands.items():
        variables = {"OMP_NUM_THREADS": "1"}
        if name in TOOLS:  # they see where a tensor ends only if it is an allocation of its own
            variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        started.append(jobs.run(Job(command, variables), folder / f"{name.replace(' ', '_')}.log", seconds))
    return dict(zip(commands, await asyncio.gather(*started), strict=True))


def judge_sanitizer(name: str, ended: Ended) -> str:
    """Its findings; they are advice, because it takes some of Triton's reductions for races."""
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (error|hazard)", ended.text)
    found = ", ".join(f"{count} {what}s" for count, what in counts if int(count))
    name = f"compute-sanitizer, {name}"
    if ended.code is None:
        return f"{name}: not done after {ended.seconds:.0f} s, so it says nothing"
    if not counts or "not supported" in ended.text:
        return f"{name}: cannot run here\n{ended.text[-1500:]}"
    return f"\n==== {name}: {found}\n{ended.text[-6000:]}" if found else f"{name}: nothing found"
