"""How much memory a layer keeps for its backward pass, and takes at most, with gradients and without."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.check import Refused, check
from bench.machine import ROOT
from bench.rivals import RIVALS, Problem, Rival, make_problem
from bench.sizes import SIZES, Setting, Size
from bench.speed import STEPS
from bench.timing import progress
from tests.cases import Case

BYTES_KEPT = {torch.float32: 20, torch.bfloat16: 10}  # at most, for each step, row and channel
PROCESSES = 3
Step = Callable[[nn.Module, Problem], object]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Row:
    """What was found for one size; without Linux, peaks are None."""

    size: str
    shape: tuple[int, int, int, int]  # T, B, I, H
    refused: dict[str, Refused] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)  # bytes per (t, b, h) beyond x and y
    peak: dict[str, dict[str, float | None]] = field(default_factory=dict)  # MB more than before, by what
    allowed: int = 0  # bytes to keep

    def kept_share(self) -> float | None:
        """What may be kept over what is; fractions of a byte are the summed bias, kept once for all steps."""
        return self.allowed / round(self.kept["ours"]) if "ours" in self.kept else None

    def peak_share(self) -> float | None:
        """The peak of nn.LSTM without gradients, which is not to be reached, over ours."""
        peak = self.peak.get("forward", {})
        ours, other = peak.get("ours"), peak.get("nn.LSTM")
        return None if ours is None or other is None else other / ours

    def shares(self) -> list[float]:
        """What was reached over what was asked; 1 and more is enough."""
        return [share for share in (self.kept_share(), self.peak_share()) if share is not None]


def measure(size: Size, setting: Setting) -> Row:
    """Measure everyone's memory in one size, peaks each in a process of its own."""
    case = size.case
    row = Row(case.name, (case.T, case.B, case.I, case.H), allowed=BYTES_KEPT[setting.dtype])
    problem = make_problem(case, setting)
    for rival in RIVALS:
        progress(f"{case.name}: {rival.name}")
        try:
            check(rival, case, setting)
        except Refused as refusal:
            row.refused[rival.name] = refusal
            continue
        row.kept[rival.name] = bytes_kept(rival.make(problem), problem) / (case.T * case.B * case.H)
        for what in STEPS:
            row.peak.setdefault(what, {})[rival.name] = least_peak(case, setting, rival.name, what)
    return row


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
    peaks = [peak_elsewhere(case, setting, name, what) for _ in range(PROCESSES)]
    return min((peak for peak in peaks if peak is not None), default=None)


def peak_elsewhere(case: Case, setting: Setting, name: str, what: str) -> float | None:
    """`peak_here` in a fresh process, whose allocator hands every large block back to the system."""
    if not RESET.exists():
        return None
    arguments = [case.name, name, what, str(setting.dtype).removeprefix("torch."), str(setting.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", *arguments, setting.engine or ""],
        cwd=ROOT,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout))


def peak_here(step: Step, rival: Rival, problem: Problem) -> float:
    """MB of resident memory that a step adds at its peak, outputs and gradients included.

    A small layer runs before it: it loads all code, and leaves no memory of this one's size at hand.
    """
    module = rival.make(problem)
    small = make_problem(replace(problem.case, T=2, B=min(problem.case.B, 8), I=16, H=16), problem.setting)
    step(rival.make(small), small)
    RESET.write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    step(module, problem)
    return (resident("VmHWM") - before) / 1e6


def resident(key: str) -> int:
    """Bytes, from what Linux tells of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main(size: str, name: str, what: str, dtype: str, threads: str, engine: str) -> None:
    """Print the peak of one rival in one size."""
    torch.set_num_threads(int(threads))
    setting = Setting(getattr(torch, dtype), int(threads), engine or None)
    case = SIZES[size].case
    problem = make_problem(case, setting)
    rival = next(rival for rival in RIVALS if rival.name == name)
    print(json.dumps(peak_here(STEPS[what], rival, problem)))


if __name__ == "__main__":
    main(*sys.argv[1:])
