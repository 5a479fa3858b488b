"""Makes the commands that run tests on a GPU. Needs nothing but Python."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

# A machine for measurements may have no compiler; that need not be said in each job.
QUIET = {"PYTHONWARNINGS": "ignore:lstm_fused runs without its C++ engine:RuntimeWarning"}


class Tool(NamedTuple):
    """A tool of compute-sanitizer: its options, and the tests that it runs."""

    options: Sequence[str]
    tests: Sequence[str]


# That a test asks too much of the driver is its intent; and reductions whose lanes all store the same number
# are hazards to racecheck, but no errors. It is slow: thousands of launches are not done after minutes.
TOOLS = {
    "memcheck": Tool(("--report-api-errors", "no"), ("tests/gpu", "-k", "same_bits or (saved and float16)")),
    "racecheck": Tool(("--racecheck-detect-level", "error"), ("tests/gpu", "-k", "saved and float16")),
}


def pytest(device: str, *arguments: str) -> list[str]:
    """The command that runs tests there; what this Python's own versions warn of is not at stake."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    where = " ".join([*paths, ".", "examples"])
    options = ["-W", "default", "-p", "no:cacheprovider", "-o", f"pythonpath={where}"]
    return [sys.executable, "-m", "pytest", *options, "--device", device, *arguments]


def limited(seconds: int) -> list[str]:
    """The options that end a test which takes longer, and the process with it, if pytest can."""
    if find_spec("pytest_timeout") is None:
        return []
    return ["-p", "pytest_timeout", "--timeout", str(seconds), "--timeout-method", "thread"]


def under(tool: str, device: str) -> list[str]:
    """The prefix that runs a command under a tool of compute-sanitizer; empty where there is none."""
    program = cuda_tool("compute-sanitizer", device)
    return [] if program is None else [program, "--tool", tool, "--print-limit", "20", *TOOLS[tool].options]


def cuda_tool(name: str, device: str) -> str | None:
    """A program of the CUDA toolkit, if there is a card to run it for."""
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    return found if device == "cuda" else None
