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
from bench.gpu.machine import Machine, milliseconds
from bench.rivals import Problem, StepByStep, cell, forward, fused, make_problem, torch_lstm, training
from bench.sizes import Setting
from bench.tables import Column, Table, digits
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


@dataclass(frozen=True)
class Row:
    """One size in one dtype: milliseconds by contender, forward without gradients and a training step."""

    shape: tuple[int, int, int, int]  # T, B, I, H
    dtype: str
    forward: dict[str, float]
    training: dict[str, float]
    left_out: dict[str, str]

    def ratio(self, what: str, name: str) -> float | None:
        """How many times longer it took than ours."""
        times: dict[str, float] = getattr(self, what)
        return times[name] / times[OURS] if {name, OURS} <= times.keys() else None


def run(machine: Machine, device: str, small: bool, seconds: float, out: Path) -> tuple[bool, str]:
    """Time every size that there is time for, and write the file: whether ours is right, and the verdict."""
    torch.set_float32_matmul_precision("high")
    begin = time.monotonic()
    columns = ("(T, B, I, H)", "dtype", "forward ms", "nn.LSTM ÷", "training ms", "nn.LSTM ÷", "cell ÷")
    table = Table([*(Column(name, 9) for name in columns), Column("torch.compile of the cell ÷")])
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
    """Check ours, then time everyone."""
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
        makers[COMPILE] = lambda: StepByStep(problem, torch.compile(cell, dynamic=False))
    times: dict[str, dict[str, float]] = {"forward": {}, "training": {}}
    pace = (1, 0.0) if brief else (5, 0.3)
    for name, make in makers.items():
        try:
            if name == OURS and (error := worst(case, dtype, device)) > WRONG:
                raise RuntimeError(f"wrong result, by {error:.0f} times what the step-by-step cell is off by")
            module = make().to(device)
            for what, step in (("forward", forward), ("training", training)):
                times[what][name] = milliseconds(partial(step, module, problem), device, *pace)
        except Exception as error:  # whatever keeps one contender from running, the others go on
            left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return Row((case.T, case.B, case.I, case.H), short(dtype), times["forward"], times["training"], left_out)


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
        found: dict[str, float] = getattr(row, what)
        return digits(found[OURS]) if OURS in found else "left out"

    def ratio(what: str, name: str) -> str:
        found = row.ratio(what, name)
        return "" if found is None else digits(found)

    return [
        str(row.shape),
        row.dtype,
        times("forward"),
        ratio("forward", CUDNN),
        times("training"),
        ratio("training", CUDNN),
        ratio("training", BY_HAND),
        ratio("training", COMPILE),
    ]


def verdict(rows: list[Row]) -> str:
    """In how many sizes ours is ahead of cuDNN, and by how much."""
    said = []
    for what in ("forward", "training"):
        ratios = [ratio for row in rows if (ratio := row.ratio(what, CUDNN)) is not None]
        if not ratios:
            return "nothing could be compared with nn.LSTM"
        ahead = sum(ratio > 1 for ratio in ratios)
        said.append(
            f"{what} ahead of nn.LSTM in {ahead} of {len(ratios)}, {digits(statistics.median(ratios))} times "
            f"in the median ({digits(min(ratios))} to {digits(max(ratios))})"
        )
    return "; ".join(said)
