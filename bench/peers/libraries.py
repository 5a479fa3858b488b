"""Contestants outside of PyTorch, each in a process of its own, so that thread pools do not interfere."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.check import Refused, compare, shortened
from bench.host.machine import installed
from bench.host.process import fresh_process
from bench.peers.modules import reference
from bench.problem import Problem, make_problem
from bench.race import Call

OUTPUTS = ("y", "h_n", "c_n")
Arrays = dict[str, Any]  # numpy arrays by name


class Program(NamedTuple):
    """The layer of a problem; a module of this folder makes one by ``program(arrays, threads)``."""

    forward: Callable[[], Any]  # computes the outputs
    training: Callable[[], Any] | None  # computes the outputs and every gradient
    named: Callable[[Any], Arrays]  # either's result: y, h_n, c_n, d_x, d_weight_ih_l0 and so on; not timed


@dataclass(frozen=True)
class Library:
    """A contestant outside of PyTorch."""

    name: str
    module: str  # of this folder; it makes a `Program`
    needs: tuple[str, ...]  # packages, as they are imported or installed
    can: tuple[str, ...]  # "forward", "training"

    def enter(self, problem: Problem, stack: ExitStack) -> tuple[float | None, Mapping[str, Call]]:
        """Start its process and check it; see `bench.race.Contestant`."""
        setting = problem.setting
        if absent := [name for name in self.needs if not (find_spec(name) or installed(name))]:
            raise Refused(f"{' and '.join(absent)} not installed")
        if setting.dtype != torch.float32 or setting.layers * setting.directions > 1:
            raise Refused("only one float32 layer in one direction was written for it")
        pool = stack.enter_context(fresh_process(OMP_NUM_THREADS=str(setting.threads)))

        def ask(function: Callable[..., Any], *arguments: object) -> Any:
            try:
                return pool.submit(function, *arguments).result()
            except NotImplementedError as refusal:
                raise Refused(str(refusal)) from None

        case = shortened(problem.case, setting)
        ask(load, self.module, arrays_of(make_problem(case, setting)), setting.threads)
        error = max(max(compare(ask(results, what), reference, case, setting).values()) for what in self.can)
        ask(load, self.module, arrays_of(problem), setting.threads)
        return error, {what: partial(ask, seconds, what) for what in self.can}


LIBRARIES = (
    Library("ONNX Runtime", "with_onnxruntime", ("onnx", "onnxruntime"), ("forward",)),
    Library("oneDNN", "with_onednn", ("onednn-cpu-gomp",), ("forward", "training")),
    Library("TensorFlow BlockLSTM", "with_tensorflow", ("tensorflow",), ("forward", "training")),
    Library("JAX lax.scan", "with_jax", ("jax",), ("forward", "training")),
)


def arrays_of(problem: Problem) -> Arrays:
    """Weights, inputs and gradients by name."""
    tensors = problem.weights | dict(zip(("x", "h0", "c0"), problem.inputs, strict=True))
    tensors |= {f"d_{name}": tensor for name, tensor in zip(OUTPUTS, problem.gradients, strict=True)}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


# In the process of its own:

loaded: Program


def load(module: str, arrays: Arrays, threads: int) -> None:
    """Make the program of a problem."""
    global loaded
    if hasattr(os, "sched_setaffinity"):  # a pool of threads then sees only so many processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    loaded = import_module(f"bench.peers.{module}").program(arrays, threads)


def results(what: str) -> dict[str, Tensor]:
    """The results of "forward" or "training", by name."""
    named = loaded.named(getattr(loaded, what)())
    return {name: torch.from_numpy(array) for name, array in named.items()}


def seconds(what: str) -> float:
    """The time that "forward" or "training" takes."""
    call = getattr(loaded, what)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
