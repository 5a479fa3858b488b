"""How fast the layer is on a GPU, against cuDNN's nn.LSTM, the step-by-step cell and torch.compile of it."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from bench.check import largest, results
from bench.everyone import STEPS
from bench.gpu.machine import Machine, timed
from bench.rivals import Problem, StepByStep, cell, fused, make_problem, torch_lstm
from bench.sizes import Setting
from bench.tables import Column, Table, digits, spread
from bench.timing import Pace, Ratio, race, ratio
from lstm_fused.backends import short
from tests.cases import Case

SIZES = tuple(
    Case(f"H{H}_B{B}", T=T, B=B, I=H, H=H)
    for H, B, T in (
        *((768, 16, 1024), (128, 16, 256), (1024, 16, 256), (256, 64, 256), (512, 64, 256), (64, 256, 256)),
        *((512, 16, 256), (256, 16, 256), (64, 16, 256), (128, 256, 256), (1024, 64, 256), (650, 20, 35)),
    )
)
TINY, TINY_DTYPES = (Case("tiny", T=2, B=3, I=3, H=5),), (torch.float16, torch.float32)
DTYPES = (torch.bfloat16, torch.float32)  # float32 products in tf32, as cuDNN's are
COMPILED = 2  # sizes that torch.compile takes part in: it takes half a minute for each
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
            rows.append(measure(case, dtype, device, with_compile=n < COMPILED, brief=small))
            table.row(cells(rows[-1]))
            gc.collect()
    for row in rows:
        for name, reason in row.left_out.items():
            print(f"{row.shape} {row.dtype}: {name} was not timed: {reason}")
    if skipped:
        print(f"no time was left for {', '.join(skipped)}")
    out.mkdir(parents=True, exist_ok=True)
    everything = {"machine": asdict(machine), "rows": [asdict(row) for row in rows], "skipped": skipped}
    (out / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
    if rows and find_spec("matplotlib") is not None:
        from bench.gpu import picture

        picture.draw(rows, f"{machine.gpu}, {machine.host.date[:10]}", out / "gpu.png")
    refused = [row for row in rows if OURS in row.left_out]
    judged = f"; {len(refused)} sizes of ours could not be timed" if refused else ""
    return not refused, verdict(rows) + judged


def measure(case: Case, dtype: torch.dtype, device: str, with_compile: bool, brief: bool) -> Row:
    """Check ours, then race everyone."""
    problem = on(make_problem(case, Setting(dtype, threads=1, engine="triton")), device)
    left_out: dict[str, str] = {}
    makers: dict[str, Callable[[], nn.Module]] = {
        OURS: lambda: fused(problem, "triton", peephole=True),
        CUDNN: lambda: torch_lstm(problem),
    }
    if case.T <= SLOW_LENGTH:
        makers[BY_HAND] = lambda: StepByStep(problem)
    if with_compile and case.T <= SLOW_LENGTH:
        torch._dynamo.reset()  # it gives up on a function that it has met in too many shapes
        backend = "eager" if brief else "inductor"
        makers[COMPILE] = lambda: StepByStep(problem, torch.compile(cell, dynamic=False, backend=backend))
    pace = Pace(2, 0) if brief else Pace(5, 1)
    calls: dict[str, dict[str, Callable[[], float]]] = {what: {} for what in STEPS}
    for name, make in makers.items():
        try:
            if name == OURS and (error := worst(case, dtype, device)) > WRONG:
                raise RuntimeError(f"wrong result, by {error:.0f} times what the step-by-step cell is off by")
            module = make().to(device)
            ready = {
                what: partial(timed, partial(step, module, problem), device) for what, step in STEPS.items()
            }
            for call in ready.values():
                for _ in range(pace.rounds):  # to compile and to capture
                    call()
        except Exception as error:  # whatever keeps one contender from running, the others go on
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            for what, call in ready.items():
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


def worst(case: Case, dtype: torch.dtype, device: str) -> float:
    """The largest error of an output or gradient of ours, in units of the step-by-step cell's."""
    problem = on(make_problem(replace(case, T=min(case.T, 32)), Setting(dtype, 1, "triton")), device)
    wide = problem.to(torch.float64)
    exact = results(StepByStep(wide).to(device), wide)
    cell_off = results(StepByStep(problem).to(device), problem)
    ours = results(fused(problem, "triton", peephole=True).to(device), problem)
    # Without tf32 a float32 cell would be a yardstick that no tf32 product can meet.
    unit = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 2**-11
    return max(
        largest(ours[name].double() - value)
        / max(largest(cell_off[name].double() - value), largest(value) * unit)
        for name, value in exact.items()
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
