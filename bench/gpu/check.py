"""The tests on the GPU, in several processes at once, and some of them under compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.machine import Machine
from bench.machine import ROOT

TESTS = ("tests",)  # but for what no device changes, which tests/conftest.py leaves out
SMALL = ("tests/gpu", "-k", "same_bits or (saved and float64)")
SANITIZED = ("tests/gpu", "-k", "same_bits or (saved and float16)")
TOOLS = ("memcheck", "racecheck")
NONE_TO_RUN = 5  # pytest's exit status
MOST = 16  # processes; each needs a gigabyte of the GPU's memory, and most of their time goes to compiling


@dataclass
class Running:
    """A process and what it says."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        """All it has said so far."""
        return self.output.read_text(errors="replace")


def run(machine: Machine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Run the tests: whether all is right, and the verdict."""
    if find_spec("pytest") is None:
        return False, f"nothing was checked, for {sys.executable} has no pytest"
    tests = SMALL if small else TESTS
    parts = 2 if small else max(1, min(MOST, os.cpu_count() or 1, machine.memory >> 30))
    wrong: list[str] = []
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        commands = {f"part {k}": pytest(device, *tests, "--part", f"{k}/{parts}") for k in range(parts)}
        commands |= {tool: sanitizer(tool, device) for tool in TOOLS if sanitizer(tool, device)}
        started = [start(name, command, Path(folder)) for name, command in commands.items()]
        if not any(tool in commands for tool in TOOLS):
            print("compute-sanitizer is not installed: left out")
        passed = 0
        for running in started:
            try:
                code = running.process.wait(max(0.0, begin + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
                code = None
            if running.name in TOOLS:
                wrong += judge_sanitizer(running, code, seconds)
            else:
                count = re.findall(r"\b(\d+) passed", running.text)
                passed += int(count[-1]) if count else 0
                wrong += judge_tests(running, code, seconds)
    took = time.monotonic() - begin
    if not passed:
        wrong.append("no test passed")
    print("\n".join(wrong))
    judged = f"{len(wrong)} things are wrong" if wrong else "every result is right"
    return not wrong, f"{judged}, {passed} tests passed in {took:.0f} s"


def pytest(device: str, *arguments: str) -> list[str]:
    """The command that runs tests there; what this Python's own versions warn of is not at stake."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    where = " ".join([*paths, ".", "examples"])
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "-o", f"pythonpath={where}"]
    return [sys.executable, "-m", "pytest", *options, "--device", device, *arguments]


def sanitizer(tool: str, device: str) -> list[str]:
    """The command that runs a few tests under it, or none where it is not installed."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None or device != "cuda":
        return []
    return [program, "--tool", tool, "--print-limit", "20", *pytest(device, *SANITIZED)]


def start(name: str, command: Sequence[str], folder: Path) -> Running:
    """Start it; what it says goes to a file, for a full pipe would stop it."""
    output = folder / name.replace(" ", "_")
    variables = {"OMP_NUM_THREADS": "1"}
    if name in TOOLS:  # which see where a tensor ends only if it is an allocation of its own
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stdout=file, stderr=subprocess.STDOUT
        )
    return Running(name, process, output)


def judge_tests(running: Running, code: int | None, seconds: float) -> list[str]:
    """What is wrong with a part of the tests; each failure is shown whole."""
    if code in (0, NONE_TO_RUN):
        return []
    print(f"\n==== {running.name}\n{running.text[-6000:]}", flush=True)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", running.text, re.MULTILINE)
    if code is None:
        return [*failed, f"{running.name} of the tests was not done after {seconds:.0f} s"]
    return failed or [f"{running.name} of the tests ended with {code}"]


def judge_sanitizer(running: Running, code: int | None, seconds: float) -> list[str]:
    """What it found; that it cannot run is said, but is no fault of the kernels."""
    counts = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (error|hazard)", running.text)
    if code is None:
        print(f"compute-sanitizer, {running.name}: not done after {seconds:.0f} s, so it says nothing")
    elif not counts or "not supported" in running.text:
        print(f"compute-sanitizer, {running.name}: cannot run here\n{running.text[-1500:]}")
    elif any(int(count) for count, _ in counts):
        print(f"\n==== compute-sanitizer, {running.name}\n{running.text[-6000:]}", flush=True)
        return [f"compute-sanitizer, {running.name}: {count} {what}s" for count, what in counts if int(count)]
    else:
        print(f"compute-sanitizer, {running.name}: nothing found")
    return []
