"""The tests on the GPU, in several processes at once, and some of them under compute-sanitizer."""

import os
import re
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.commands import SANITIZED, TOOLS, limited, pytest, under
from bench.gpu.groups import Running, start, wait
from bench.gpu.machine import Machine
from bench.machine import ROOT

TESTS = ("tests",)  # but for what no device changes, which tests/conftest.py leaves out
SMALL = ("tests/gpu", "-k", "same_bits or (saved and float64)")
NONE_TO_RUN = 5  # pytest's exit status
MOST = 16  # processes; each needs a gigabyte of the GPU's memory, and most of their time goes to compiling
PAST_31 = "past_two_to_the_31"  # takes 28 GB each, so one at a time and with nobody beside it
ALONE = 60.0  # seconds for them
ONE_TEST = 60  # seconds


def run(machine: Machine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Run the tests: whether all is right, and the verdict. What each process says is in out/check."""
    if find_spec("pytest") is None:
        return False, f"nothing was checked, for {sys.executable} has no pytest"
    begin = time.monotonic()
    folder = out / "check"
    folder.mkdir(parents=True, exist_ok=True)
    tools = {tool: prefix for tool in TOOLS if (prefix := under(tool, device))}
    most = min(MOST, os.cpu_count() or 1, machine.memory >> 30) - len(tools)
    parts = 2 if small else max(1, most)
    each = partial(pytest, device, "-q", *limited(ONE_TEST))
    apart = SMALL if small else (*TESTS, "-k", f"not {PAST_31}")
    commands = {f"part {k}": each(*apart, "--part", f"{k}/{parts}") for k in range(parts)}
    commands |= {tool: [*prefix, *pytest(device, "-q", *SANITIZED)] for tool, prefix in tools.items()}
    if not tools:
        print("compute-sanitizer is not installed: left out")
    wrong: list[str] = []
    passed = 0

    def done(running: Running) -> None:
        nonlocal passed
        if running.name in TOOLS:
            print(judge_sanitizer(running, running.code, running.seconds), flush=True)
            return
        count = re.findall(r"\b(\d+) passed", running.text)
        passed += int(count[-1]) if count else 0
        wrong.extend(judge_tests(running, running.code, running.seconds))

    alone = 0.0 if device != "cuda" or small else ALONE
    wait([launch(name, command, folder) for name, command in commands.items()], seconds - alone, done)
    if alone:
        wait([launch("alone", each("tests/gpu", "-k", PAST_31), folder)], alone, done)
    took = time.monotonic() - begin
    if not passed:
        wrong.append("no test passed")
    print("\n".join(wrong))
    judged = f"{len(wrong)} things are wrong" if wrong else "every result is right"
    return not wrong, f"{judged}, {passed} tests passed in {took:.0f} s"


def launch(name: str, command: list[str], folder: Path) -> Running:
    """Start it."""
    variables = {"OMP_NUM_THREADS": "1"}
    if name in TOOLS:  # which see where a tensor ends only if it is an allocation of its own
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return start(name, command, folder / f"{name.replace(' ', '_')}.log", variables, ROOT)


def judge_tests(running: Running, code: int | None, seconds: float) -> list[str]:
    """What is wrong with a part of the tests; each failure is shown whole."""
    if code in (0, NONE_TO_RUN):
        return []
    print(f"\n==== {running.name}\n{running.text[-6000:]}", flush=True)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", running.text, re.MULTILINE)
    if code is None:
        return [*failed, f"{running.name} of the tests was not done after {seconds:.0f} s"]
    return failed or [f"{running.name} of the tests ended with {code}"]


def judge_sanitizer(running: Running, code: int | None, seconds: float) -> str:
    """What it found; that is advice, for it takes some of Triton's reductions for races."""
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (error|hazard)", running.text)
    found = ", ".join(f"{count} {what}s" for count, what in counts if int(count))
    name = f"compute-sanitizer, {running.name}"
    if code is None:
        return f"{name}: not done after {seconds:.0f} s, so it says nothing"
    if not counts or "not supported" in running.text:
        return f"{name}: cannot run here\n{running.text[-1500:]}"
    return f"\n==== {name}: {found}\n{running.text[-6000:]}" if found else f"{name}: nothing found"
