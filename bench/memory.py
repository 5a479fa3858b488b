"""Measures the memory that a layer keeps for its backward pass, and its peak with and without gradients."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.cases import Setting
from bench.check import Refused, Wrong
from bench.host.process import fresh_process
from bench.peers.modules import BASICS, Module
from bench.problem import STEPS, Problem, make_problem
from bench.race import Record, Target, empty, progress
from tests.cases import Case

NUMBERS_KEPT = 5  # at most, for each step, row and channel: the four gates and c
PROCESSES = 3
# An allocator with these settings hands every large block back to the system.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def measure_memory(case: Case, setting: Setting) -> list[Record]:
    """Measure ours, nn.LSTM and the cell at one size; peaks in fresh processes, on Linux only."""
    records = {
        (module.name, what): empty(case, setting, what, module.name) for module in BASICS for what in STEPS
    }
    problem = make_problem(case, setting)
    for module in BASICS:
        progress(f"{case.name}: {module.name}")
        mine = [records[module.name, what] for what in STEPS]
        try:
            module.check(case, setting)
        except Refused as refusal:
            for record in mine:
                record.refused, record.wrong = str(refusal), isinstance(refusal, Wrong)
            continue
        for record in mine:
            record.peak = least_peak(case, setting, module.name, record.what)
        mine[1].kept = bytes_kept(module.make(problem), problem) / (case.T * case.B * case.H)
    forward, training = records["ours", "forward"], records["ours", "training"]
    if training.kept is not None:
        most = NUMBERS_KEPT * setting.dtype.itemsize
        training.targets["kept"] = Target(training.kept, most, at_most=True)
    if forward.peak is not None and (limit := records["nn.LSTM", "forward"].peak) is not None:
        forward.targets["peak"] = Target(forward.peak, limit, at_most=True)
    return list(records.values())


def bytes_kept(module: nn.Module, problem: Problem) -> int:
    """Bytes of everything autograd holds after the forward pass but inputs, parameters and outputs."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, h0, c0 = (t.detach().requires_grad_() for t in problem.inputs)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, (h_n, c_n) = module(x, (h0, c0))
    for tensor in (x, h0, c0, y, h_n, c_n, *module.parameters()):
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(saved.values())


def least_peak(case: Case, setting: Setting, name: str, what: str) -> float | None:
    """The least peak of a few processes: whatever else happens in one can only raise it."""
    if not RESET.exists():
        return None
    peaks = []
    for _ in range(PROCESSES):
        with fresh_process(**MALLOC) as pool:
            peaks.append(pool.submit(peak, case, setting, name, what).result())
    return min(peaks)


def peak(case: Case, setting: Setting, name: str, what: str) -> float:
    """`peak_here` of a contestant by its name."""
    torch.set_num_threads(setting.threads)
    module = next(module for module in BASICS if module.name == name)
    return peak_here(what, module, make_problem(case, setting))


def peak_here(what: str, contestant: Module, problem: Problem) -> float:
    """MB of resident memory that a step adds at its peak, outputs and gradients included.

    A small layer runs before it: it loads all code, and leaves no memory of this one's size at hand.
    """
    step, module = STEPS[what], contestant.make(problem)
    small = make_problem(replace(problem.case, T=2, B=min(problem.case.B, 8), I=16, H=16), problem.setting)
    step(contestant.make(small), small)
    RESET.write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    step(module, problem)
    return (resident("VmHWM") - before) / 1e6


def resident(key: str) -> int:
    """Bytes, from what Linux tells of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
