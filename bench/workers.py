"""Rivals outside of PyTorch, each in a process of its own: their thread pools would get in each other's way.

A worker takes commands on its standard input, one a line, and answers each with one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from bench.machine import ROOT, installed
from bench.rivals import Problem
from bench.sizes import Setting

NAMES = ("y", "h_n", "c_n")
Arrays = dict[str, Any]  # numpy arrays by name


class Program(Protocol):
    """What a worker's module calls `Program`: it is made of arrays by name and a count of threads."""

    def __init__(self, arrays: Arrays, threads: int) -> None: ...

    def forward(self) -> Any:
        """The outputs, computed when this returns."""

    def training(self) -> Any:
        """Those and every gradient."""

    def named(self, found: Any) -> Arrays:
        """What either returned: y, h_n, c_n, d_x, d_h0, d_c0, d_weight_ih_l0 and so on; not timed."""


def missing(packages: Sequence[str]) -> list[str]:
    """Those that are neither to be imported nor installed."""
    return [package for package in packages if not (find_spec(package) or installed(package))]


class Worker:
    """A process that runs another library.

    Args:
        module: of this package; it defines a `Program`.
        needs: the packages without which it cannot run.
        setting: how many threads it gets, and what it has to be able to do.

    Raises:
        NotImplementedError: a package is not installed, or the setting is not for workers.
    """

    def __init__(self, module: str, needs: Sequence[str], setting: Setting) -> None:
        if absent := missing(needs):
            raise NotImplementedError(f"{' and '.join(absent)} not installed")
        if setting.dtype != torch.float32 or setting.layers * setting.directions > 1:
            raise NotImplementedError("only one float32 layer in one direction was written for it")
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.workers", module, str(setting.threads)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(setting.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def load(self, problem: Problem) -> None:
        """Take a problem, in place of the one before."""
        tensors = dict(problem.weights)
        tensors |= dict(zip(("x", "h0", "c0"), problem.inputs, strict=True))
        tensors |= dict(zip((f"d_{name}" for name in NAMES), problem.gradients, strict=True))
        path = Path(self.folder.name) / "problem.npz"
        np.savez(path, allow_pickle=False, **{name: tensor.numpy() for name, tensor in tensors.items()})
        self.ask("load", str(path))

    def results(self, what: str) -> dict[str, Tensor]:
        """What "forward" or "training" comes to, by name."""
        path = Path(self.folder.name) / "results.npz"
        self.ask("results", what, str(path))
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def seconds(self, what: str) -> float:
        """How long "forward" or "training" takes, as the worker saw it."""
        return float(self.ask("seconds", what))

    def ask(self, *command: str) -> Any:
        """Send a command; its answer.

        Raises:
            RuntimeError: the worker ended, or could not do it.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self.process.wait()} at {command[0]!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotImplementedError(answer["error"])
        return answer["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended before
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.folder.cleanup()


def serve(module: str, threads: int) -> None:
    """Answer commands until there are no more; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(os, "sched_setaffinity"):  # a pool of threads then sees only so many processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    make: type[Program] = import_module(f"bench.{module}").Program
    program: Program | None = None
    for line in sys.stdin:
        value: object = None
        try:
            match json.loads(line):
                case ["load", path]:
                    with np.load(path) as file:
                        program = make({name: file[name] for name in file.files}, threads)
                case ["results", what, path]:
                    assert program is not None
                    np.savez(path, allow_pickle=False, **program.named(getattr(program, what)()))
                case ["seconds", what]:
                    call = getattr(program, what)
                    start = time.perf_counter()
                    call()
                    value = time.perf_counter() - start
            answer = {"value": value}
        except NotImplementedError as refusal:
            answer = {"error": str(refusal)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
