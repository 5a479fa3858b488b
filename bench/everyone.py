"""Everyone who computes a peephole LSTM, in one race: loops in PyTorch, and other libraries."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from bench.check import Refused, check, compare, shortened
from bench.loops import CompiledLoop, HoistedLoop
from bench.rivals import RIVALS, Problem, Rival, forward, make_problem, training
from bench.sizes import Setting
from bench.timing import Pace, Ratio, progress, race, ratio
from bench.workers import Worker
from tests.cases import Case

LOOPS = (*RIVALS, Rival("hoisted loop", True, HoistedLoop), Rival("compiled loop", True, CompiledLoop))
STEPS = {"forward": forward, "training": training}


@dataclass(frozen=True)
class Library:
    """A rival outside of PyTorch."""

    name: str
    module: str  # of this package
    needs: tuple[str, ...]  # the packages it takes, as they are imported or installed
    can: tuple[str, ...]  # "forward", "training"


LIBRARIES = (
    Library("ONNX Runtime", "with_onnxruntime", ("onnx", "onnxruntime"), ("forward",)),
    Library("oneDNN", "with_onednn", ("onednn-cpu-gomp",), ("forward", "training")),
    Library("TensorFlow BlockLSTM", "with_tensorflow", ("tensorflow",), ("forward", "training")),
    Library("JAX lax.scan", "with_jax", ("jax",), ("forward", "training")),
)


OURS, TORCH = RIVALS[:2]
# What unequal lengths cost: beside the same sequences taken for whole ones, which is another function.
WITH_LENGTHS = (
    OURS,
    replace(OURS, name="ours, all T steps", all_steps=True),
    replace(TORCH, name="nn.LSTM, packed"),
    replace(TORCH, name="nn.LSTM, all T steps", all_steps=True),
)


@dataclass
class Row:
    """What was found for one rival in one size."""

    size: str
    shape: tuple[int, int, int, int]  # T, B, I, H
    rival: str
    refused: dict[str, Refused] = field(default_factory=dict)  # why it was not timed
    error: float | None = None  # in units of the reference's own
    milliseconds: dict[str, float] = field(default_factory=dict)  # medians by what
    ratios: dict[str, Ratio] = field(default_factory=dict)  # its time over ours, by what

    @property
    def is_ours(self) -> bool:
        """Whether it is the one that the others are compared to."""
        return self.rival == OURS.name

    def shares(self) -> list[float]:
        """Nothing is asked of these."""
        return []


Call = Callable[[], object]


def measure(
    case: Case, setting: Setting, pace: Pace, rivals: Sequence[Rival | Library] | None = None
) -> Iterator[Row]:
    """Check everyone, then race those who are right; ours is the first row."""
    rivals = (*LOOPS, *LIBRARIES) if rivals is None else rivals
    problem = make_problem(case, setting)
    rows, calls = {}, dict[str, dict[str, Call]]()
    with ExitStack() as stack:
        for rival in rivals:
            progress(f"{case.name}: checking {rival.name}")
            row = rows[rival.name] = Row(case.name, (case.T, case.B, case.I, case.H), rival.name)
            try:
                if isinstance(rival, Rival):
                    row.error, calls[rival.name] = enter(rival, problem)
                else:
                    row.error, calls[rival.name] = enter_worker(rival, problem, stack)
            except NotImplementedError as refusal:
                row.refused[rival.name] = Refused(str(refusal))
            except Refused as refusal:
                row.refused[rival.name] = refusal
        ours = rivals[0].name
        for what in STEPS:
            taking_part = {name: steps[what] for name, steps in calls.items() if what in steps}
            if ours not in taking_part:
                break
            progress(f"{case.name}: {what}, {', '.join(taking_part)} in turn")
            seconds = race(taking_part, pace)
            for name, times in seconds.items():
                rows[name].milliseconds[what] = 1e3 * statistics.median(times)
                rows[name].ratios[what] = ratio(times, seconds[ours])
    yield from rows.values()


def enter(rival: Rival, problem: Problem) -> tuple[float, dict[str, Call]]:
    """The error of a module, and its calls to time."""
    if rival.all_steps:
        problem = make_problem(replace(problem.case, lengths=None), problem.setting)
    error = check(rival, problem.case, problem.setting)
    module = rival.make(problem)
    return error, {what: partial(step, module, problem) for what, step in STEPS.items()}


def enter_worker(library: Library, problem: Problem, stack: ExitStack) -> tuple[float, dict[str, Call]]:
    """The same of another library."""
    case = shortened(problem.case, problem.setting)
    small = make_problem(case, problem.setting)
    worker = stack.enter_context(Worker(library.module, library.needs, problem.setting))
    worker.load(small)
    error = max(compare(worker.results(what), case, problem.setting, peephole=True) for what in library.can)
    worker.load(problem)
    return error, {what: partial(worker.seconds, what) for what in library.can}
