"""Runs all tests on the GPU as two stages of a day, and some of them under compute-sanitizer."""

import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from bench.gpu import stages
from bench.gpu.commands import limited, pytest
from bench.gpu.day import Day
from bench.gpu.jobs import Job
from bench.gpu.stages import PAST_31, Place, Stage
from bench.host.machine import GpuMachine

TESTS = ("tests",)  # but those that no device changes, which tests/conftest.py leaves out
SMALL = ("tests/gpu", "-k", "same_bits or (saved and float64)")
MOST = 16  # processes; each needs a gigabyte of the GPU's memory, and most of their time goes to compiling
ALONE = 60.0  # seconds for tests that take 28 GB each, so one at a time and with nobody beside it
ONE_TEST = limited(60)
VARIABLES = {"OMP_NUM_THREADS": "1"}


def run(machine: GpuMachine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Run the tests: whether all is right, and the verdict. The output of each process is in out/check."""
    if find_spec("pytest") is None:
        return False, f"nothing was checked: {sys.executable} has no pytest"
    begin = time.monotonic()
    place = Place(device, small, out / "check", out / "check")
    tools = stages.sanitized_tests(place, "-q")
    most = min(MOST, os.cpu_count() or 1, machine.memory >> 30) - len(tools)
    parts = 2 if small else max(1, most)
    chosen = SMALL if small else (*TESTS, "-k", f"not {PAST_31}")
    command = pytest(device, "-v", *ONE_TEST, *chosen)
    jobs = {f"part-{k}": Job([*command, "--part", f"{k}/{parts}"], VARIABLES) for k in range(parts)}
    alone = 0.0 if device != "cuda" or small else ALONE
    day = Day(place, seconds, {})
    day.run(Stage("tests", seconds - alone, jobs | tools))
    if alone:
        command = pytest(device, "-v", *ONE_TEST, "tests/gpu", "-k", PAST_31)
        day.run(stages.alone("past-31", alone, Job(command, VARIABLES)))
    for found in day.found:
        if found.advice:
            log = (day.logs / f"{found.job}.log").read_text(errors="replace")
            print(judge_sanitizer(found.job, log, found.code, found.seconds))
    wrong = [found.job for found in day.found if not found.advice and found.outcome != "right"]
    passed = sum(found.tests.get("PASSED", 0) for found in day.found)
    judged = f"{', '.join(wrong)} went wrong" if wrong else "every result is right"
    return not wrong and passed > 0, f"{judged}, {passed} tests passed in {time.monotonic() - begin:.0f} s"


def judge_sanitizer(name: str, text: str, code: int | None, seconds: float) -> str:
    """Its findings; they are advice, because it takes some of Triton's reductions for races."""
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (error|hazard)", text)
    found = ", ".join(f"{count} {what}s" for count, what in counts if int(count))
    name = f"compute-sanitizer, {name}"
    if code is None:
        return f"{name}: not done after {seconds:.0f} s, so it says nothing"
    if not counts or "not supported" in text:
        return f"{name}: cannot run here\n{text[-1500:]}"
    return f"\n==== {name}: {found}\n{text[-6000:]}" if found else f"{name}: nothing found"
