"""How fast the layer is on a GPU, against cuDNN's nn.LSTM, the step-by-step cell and torch.compile of it."""

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.check import largest, results
from bench.everyone import STEPS
from bench.gpu.machine import Machine, timed
from bench.gpu.tune import kernel_named
from bench.rivals import Problem, StepByStep, cell, fused, make_problem, torch_lstm
from bench.sizes import Setting
from bench.tables import Column, Table, digits, spread
from bench.timing import Pace, Ratio, race, ratio
from lstm_fused.backends.table import short
from tests.cases import Case

SIZES = tuple(
    Case(f"H{H}_B{B}", T=T, B=B, I=H, H=H)
    for H, B, T in (
        *((768, 16, 1024), (128, 16, 256), (1024, 16, 256), (256, 64, 256), (512, 64, 256), (64, 256, 256)),
        *((512, 16, 256), (256, 16, 256), (64, 16, 256), (128, 256, 256), (1024, 64, 256), (650, 20, 35)),
    )
)
TINY, TINY_DTYPES = (Case("tiny", T=2, B=3, I=3, H=5),), (torch.float16, torch.float32)
# cuDNN's fastest kernel takes float16 alone; float32 products are in tf32, as cuDNN's are.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COMPILED = 2  # sizes that torch.compile takes part in, in two dtypes: it takes half a minute for each
WARM = 3  # calls before any is timed: to compile, to capture, to replay
SLOW_LENGTH = 256  # longer sequences are not run step by step
OURS, CUDNN, BY_HAND, COMPILE = "lstm_fused", "nn.LSTM", "cell", "torch.compile"
WRONG = 10  # in units of the step-by-step cell's own error in the same dtype
COLUMNS = (
    Column("(T, B, I, H)", 20),
    Column("dtype", 8),
    Column("forward ms"),
    Column("nn.LSTM ÷ ours", 18),
    Column("training ms"),
    Column("nn.LSTM ÷ ours", 18),
    Column("cell ÷ ours", 18),
    Column("torch.compile of the cell ÷ ours", 18),
)


@dataclass(frozen=True)
class Row:
    """One size in one dtype, forward without gradients and a training step, all raced in turn."""

    shape: tuple[int, int, int, int]  # T, B, I, H
    dtype: str
    milliseconds: dict[str, dict[str, float]]  # medians by what and who
    ratios: dict[str, dict[str, Ratio]]  # of the others' time to ours, by what and who
    left_out: dict[str, str]


def run(machine: Machine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Time every size that there is time for, and write the file: whether ours is right, and the verdict."""
    torch.set_float32_matmul_precision("high")
    begin = time.monotonic()
    table = Table(COLUMNS)
    rows: list[Row] = []
    skipped = []
    sizes, dtypes = (TINY, TINY_DTYPES) if small else (SIZES, DTYPES)
    for n, case in enumerate(sizes):
        for dtype in dtypes:
            if time.monotonic() - begin > seconds:
                skipped.append(f"{case.name} {short(dtype)}")
                continue
            with_compile = small or (n < COMPILED and dtype != torch.float16)
            rows.append(measure(case, dtype, device, everyone(case, with_compile, brief=small), brief=small))
            table.row(cells(rows[-1]))
            write(out / "gpu.json", machine, rows, skipped)
            gc.collect()
    for row in rows:
        for name, reason in row.left_out.items():
            print(f"{row.shape} {row.dtype}: {name} was not timed: {reason}")
    if skipped:
        print(f"no time was left for {', '.join(skipped)}")
    write(out / "gpu.json", machine, rows, skipped)
    if rows and find_spec("matplotlib") is not None:
        from bench.gpu import picture

        picture.draw(rows, f"{machine.gpu}, {machine.host.date[:10]}", out / "gpu.png")
    refused = [row for row in rows if OURS in row.left_out]
    judged = f"; {len(refused)} sizes of ours could not be timed" if refused else ""
    return not refused, verdict(rows) + judged


def write(path: Path, machine: Machine, rows: list[Row], skipped: list[str]) -> None:
    """Write what there is so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": asdict(machine), "rows": [asdict(row) for row in rows], "skipped": skipped}
    path.write_text(json.dumps(everything, indent=1) + "\n")


@dataclass(frozen=True)
class Contender:
    """Who takes part: a module, and the kernel it is held to."""

    make: Callable[[Problem], nn.Module]
    kernel: str | None = None
    checked: bool = False  # against the step-by-step cell


def ours(kernel: str | None = None) -> Contender:
    """The layer with one kernel, or with the one that is chosen for it."""
    return Contender(lambda problem: fused(problem, "triton", peephole=True), kernel, checked=True)


def everyone(case: Case, with_compile: bool, brief: bool) -> dict[str, Contender]:
    """All that are raced at this size."""
    found = {OURS: ours(), CUDNN: Contender(torch_lstm)}
    if case.T <= SLOW_LENGTH:
        found[BY_HAND] = Contender(StepByStep)
    if with_compile and case.T <= SLOW_LENGTH:
        torch._dynamo.reset()  # it gives up on a function that it has met in too many shapes
        backend = "eager" if brief else "inductor"
        compiled = torch.compile(cell, dynamic=False, backend=backend)
        found[COMPILE] = Contender(lambda problem: StepByStep(problem, compiled))
    return found


def measure(
    case: Case,
    dtype: torch.dtype,
    device: str,
    contenders: Mapping[str, Contender],
    brief: bool,
    ready: Callable[[str, str, float], object] = lambda name, what, milliseconds: None,
) -> Row:
    """Check ours, then race everyone.

    Args:
        case: the size.
        dtype: of all tensors.
        device: where.
        contenders: who takes part, by name.
        brief: whether to do no more than go through it all.
        ready: is told of the first time of each, long before the race is over.
    """
    problem = on(make_problem(case, Setting(dtype, threads=1, engine="triton")), device)
    left_out: dict[str, str] = {}
    pace = Pace(2, 0) if brief else Pace(5, 1)
    calls: dict[str, dict[str, Callable[[], float]]] = {what: {} for what in STEPS}
    for name, contender in contenders.items():
        try:
            prepared = prepare(contender, problem, device)
        except Exception as error:  # whatever keeps one contender from running, the others go on
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            for what, call in prepared.items():
                ready(name, what, 1e3 * call())
                calls[what][name] = call
    times = {what: race(taking_part, pace) for what, taking_part in calls.items()}
    return Row(
        (case.T, case.B, case.I, case.H),
        short(dtype),
        {
            what: {name: 1e3 * statistics.median(t) for name, t in found.items()}
            for what, found in times.items()
        },
        {
            what: {name: ratio(t, found[OURS]) for name, t in found.items() if name != OURS and OURS in found}
            for what, found in times.items()
        },
        left_out,
    )


def prepare(contender: Contender, problem: Problem, device: str) -> dict[str, Callable[[], float]]:
    """Calls that time themselves, after the first ones, by what they do.

    Raises:
        RuntimeError: its results are wrong.
    """

    def call(step: Callable[[], object]) -> float:
        with kernel_named(contender.kernel):
            return timed(step, device)

    with kernel_named(contender.kernel):
        if contender.checked and not (error := worst(problem, contender, device)) <= WRONG:
            raise RuntimeError(f"wrong result, by {error:.0f} times what the step-by-step cell is off by")
    module = contender.make(problem).to(device)
    calls: dict[str, Callable[[], float]] = {
        what: partial(call, partial(step, module, problem)) for what, step in STEPS.items()
    }
    for timed_call in calls.values():
        for _ in range(WARM):
            timed_call()
    return calls


def worst(problem: Problem, contender: Contender, device: str) -> float:
    """The largest error of an output or gradient, in units of the step-by-step cell's."""
    case, dtype = problem.case, problem.setting.dtype
    short_problem, exact, units = yardstick(replace(case, T=min(case.T, 32)), dtype, device)
    found = results(contender.make(short_problem).to(device), short_problem)
    errors = [largest(found[name].double() - value) / units[name] for name, value in exact.items()]
    return max(error if error == error else math.inf for error in errors)


@lru_cache(maxsize=1)
def yardstick(
    case: Case, dtype: torch.dtype, device: str
) -> tuple[Problem, dict[str, Tensor], dict[str, float]]:
    """A problem, what is right, and what the step-by-step cell is off by in this dtype."""
    problem = on(make_problem(case, Setting(dtype, 1, "triton")), device)
    wide = problem.to(torch.float64)
    exact = results(StepByStep(wide).to(device), wide)
    cell_off = results(StepByStep(problem).to(device), problem)
    # Without tf32 a float32 cell would be a yardstick that no tf32 product can meet.
    unit = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 2**-11
    return (
        problem,
        exact,
        {
            name: max(largest(cell_off[name].double() - value), largest(value) * unit)
            for name, value in exact.items()
        },
    )


def on(problem: Problem, device: str) -> Problem:
    """The same problem, there."""
    x, h0, c0 = (t.to(device) for t in problem.inputs)
    dy, dh_n, dc_n = (t.to(device) for t in problem.gradients)
    weights = {name: weight.to(device) for name, weight in problem.weights.items()}
    return replace(problem, weights=weights, inputs=(x, h0, c0), gradients=(dy, dh_n, dc_n))


def cells(row: Row) -> list[str]:
    """What the table says of a size."""

    def times(what: str) -> str:
        found = row.milliseconds[what]
        return digits(found[OURS]) if OURS in found else "left out"

    def beside(what: str, name: str) -> str:
        found = row.ratios[what]
        return spread(found[name]) if name in found else ""

    return [
        str(row.shape),
        row.dtype,
        times("forward"),
        beside("forward", CUDNN),
        times("training"),
        beside("training", CUDNN),
        beside("training", BY_HAND),
        beside("training", COMPILE),
    ]


def verdict(rows: list[Row]) -> str:
    """In how many sizes ours is ahead of cuDNN, and by how much."""
    said = []
    for what in STEPS:
        ratios = [row.ratios[what][CUDNN].median for row in rows if CUDNN in row.ratios[what]]
        if not ratios:
            return "nothing could be compared with nn.LSTM"
        ahead = sum(ratio > 1 for ratio in ratios)
        said.append(
            f"{what} ahead of nn.LSTM in {ahead} of {len(ratios)}, {digits(statistics.median(ratios))} times "
            f"in the median ({digits(min(ratios))} to {digits(max(ratios))})"
        )
    return "; ".join(said)
