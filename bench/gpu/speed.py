"""Times the layer on a GPU against cuDNN's nn.LSTM, the step-by-step cell and torch.compile of it."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from time import monotonic

import torch

from bench.cases import Setting
from bench.check import Make, Refused, check
from bench.gpu.kernels import Queued, kernel_named, tf32, timed
from bench.host.machine import GpuMachine
from bench.peers.modules import StepByStep, cell, compiled, fused, torch_lstm
from bench.problem import STEPS, Problem
from bench.race import Call, Pace, Record, measure, write_json
from bench.report.tables import SHAPE, Column, Kind, digits, ratios, time
from lstm_fused.backends.table import short
from tests.cases import Case

SIZES = tuple(
    Case(f"H{H}_B{B}", T=T, B=B, I=H, H=H)
    for H, B, T in (
        *((768, 16, 1024), (128, 16, 256), (1024, 16, 256), (256, 64, 256), (512, 64, 256), (64, 256, 256)),
        *((512, 16, 256), (256, 16, 256), (64, 16, 256), (128, 256, 256), (1024, 64, 256), (650, 20, 35)),
        (128, 64, 28),
    )
)
TINY, TINY_DTYPES = (Case("tiny", T=2, B=3, I=3, H=5),), (torch.float16, torch.float32)
# cuDNN's fastest kernel takes float16 alone; float32 products are in tf32, as cuDNN's are.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COMPILED = SIZES[:2]  # torch.compile takes part here, in two dtypes: it takes half a minute for each
WARM = 3  # calls before any is timed: to compile, to capture, to replay
SLOW_LENGTH = 256  # longer sequences are not run step by step
CHECKED_STEPS = 32
OURS, CUDNN = "lstm_fused", "nn.LSTM"
WRONG = 10.0  # in units of the step-by-step cell's own error in the same dtype


def columns(what: str) -> list[Column]:
    """Our time and cuDNN's over it, then the same of the GPU alone."""
    return [
        *(Column(f"{what} ms", time, 0, what, OURS), ratios(CUDNN, what)),
        *(Column(f"GPU ms, {who}", gpu_time, 0, what, who) for who in (OURS, CUDNN)),
    ]


def gpu_time(record: Record) -> str:
    """The median of the GPU's own milliseconds."""
    return digits(record.gpu_milliseconds)


TABLE = Kind(
    lambda record: (record.shape, record.dtype),
    (
        *(SHAPE, Column("dtype", lambda record: record.dtype, 8)),
        *(column for what in STEPS for column in columns(what)),
        *(ratios("cell", "training"), ratios("torch.compile", "training")),
    ),
)


@dataclass(frozen=True)
class Timed:
    """A contestant that the GPU's clock times, twice: with the host's part of a call, and without."""

    name: str
    make: Make
    kernel: str | None = None  # the one that it may take
    limit: float | None = None  # of its error; None: not checked
    ready: Callable[[str, str, float], object] = lambda name, what, milliseconds: None  # gets the first times
    can: tuple[str, ...] = tuple(STEPS)
    queued: dict[str, list[float]] = field(
        default_factory=dict
    )  # by step, the GPU's own seconds of each call

    def enter(self, problem: Problem, stack: ExitStack) -> tuple[float | None, Mapping[str, Call]]:
        """Check it, and call it a few times; see `bench.race.Contestant`."""
        setting, error = problem.setting, None
        try:
            with kernel_named(self.kernel):
                if self.limit is not None:
                    few = replace(problem.case, T=min(problem.case.T, CHECKED_STEPS))
                    error = check(self.make, StepByStep, few, setting, limit=self.limit)
                module = self.make(problem)
            steps = {what: partial(STEPS[what], module, problem) for what in STEPS}
            calls = {what: self.clocked(what, step, setting.device) for what, step in steps.items()}
            for call in calls.values():
                for _ in range(WARM):
                    call()
            self.queued.clear()
        except Exception as reason:  # whatever keeps one contestant from running, the others go on
            raise Refused(f"{type(reason).__name__}: {str(reason)[:300]}") from reason
        for what, call in calls.items():
            self.ready(self.name, what, 1e3 * call())
        return error, calls

    def clocked(self, what: str, step: Callable[[], object], device: str) -> Callable[[], float]:
        """A call that gives the seconds of a step on an idle device, and keeps those of the GPU alone."""
        queued = Queued(step, device)

        def call() -> float:
            with kernel_named(self.kernel):
                self.queued.setdefault(what, []).append(queued())
                return timed(step, device)

        return call


def ours(kernel: str | None = None) -> Timed:
    """The layer with one kernel, or with the one that is chosen for it."""
    name = OURS if kernel is None else f"{OURS}, {kernel}"
    return Timed(name, partial(fused, engine="triton"), kernel, WRONG)


def raced(case: Case, setting: Setting, contestants: Sequence[Timed], pace: Pace) -> list[Record]:
    """The records of a race, with both times of each contestant."""
    records = measure(case, setting, contestants, pace, OURS, without_ours=True)
    queued = {contestant.name: contestant.queued for contestant in contestants}
    for record in records:
        if record.milliseconds is not None and (seconds := queued[record.who].get(record.what)):
            record.gpu_milliseconds = 1e3 * statistics.median(seconds)
    return records


def contestants(case: Case, dtype: torch.dtype, small: bool) -> list[Timed]:
    """All that are raced at this size."""
    found = [ours(), Timed(CUDNN, torch_lstm)]
    if case.T <= SLOW_LENGTH:
        found.append(Timed("cell", StepByStep))
        if small or (case in COMPILED and dtype != torch.float16):
            step = compiled(cell, "eager" if small else "inductor")
            found.append(Timed("torch.compile", partial(StepByStep, cell=step)))
    return found


@tf32()
def run(machine: GpuMachine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Time every size that there is time for, and write the file: whether ours is right, and the verdict."""
    begin = monotonic()
    TABLE.print()
    records: list[Record] = []
    skipped = []
    for case, dtype in product(*((TINY, TINY_DTYPES) if small else (SIZES, DTYPES))):
        if monotonic() - begin > seconds:
            skipped.append(f"{case.name} {short(dtype)}")
            continue
        setting = Setting(dtype, threads=1, engine="triton", device=device)
        found = raced(case, setting, contestants(case, dtype, small), pace(small))
        TABLE.print(found)
        records += found
        write_json(out / "gpu.json", machine=machine, records=records, skipped=skipped)
        gc.collect()
    for line in dict.fromkeys(
        f"{r.shape} {r.dtype}: {r.who} was not timed: {r.refused}" for r in records if r.refused
    ):
        print(line)
    if skipped:
        print(f"no time was left for {', '.join(skipped)}")
    write_json(out / "gpu.json", machine=machine, records=records, skipped=skipped)
    if find_spec("matplotlib") is not None:
        from bench.report.plots import draw_gpu

        draw_gpu(records, f"{machine.gpu}, {machine.host.date[:10]}", out / "gpu.png")
    refused = {(record.shape, record.dtype) for record in records if record.who == OURS and record.refused}
    judged = f"; {len(refused)} sizes of ours could not be timed" if refused else ""
    return not refused, verdict(records) + judged


def pace(small: bool) -> Pace:
    """The pace of a race."""
    return Pace(2, 0) if small else Pace(5, 1)


def verdict(records: list[Record]) -> str:
    """In how many sizes ours is ahead of cuDNN, and by how much."""
    said = []
    for what in STEPS:
        found = [r.ratio.median for r in records if (r.what, r.who) == (what, CUDNN) and r.ratio]
        if not found:
            return "nothing could be compared with nn.LSTM"
        said.append(
            f"{what} ahead of nn.LSTM in {sum(ratio > 1 for ratio in found)} of {len(found)}, "
            f"{digits(statistics.median(found))} times in the median "
            f"({digits(min(found))} to {digits(max(found))})"
        )
    return "; ".join(said)
