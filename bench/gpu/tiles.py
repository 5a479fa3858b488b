"""Times every tile of the kernels that run a whole sequence: python -m bench.gpu.tiles [--part K/N].

What is measured here orders the tiles in kernels/persistent.py and kernels/cluster.py. With --part it only
compiles and checks one part of them, so that several processes share that work.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from statistics import median

import torch
from lstm_fused.kernels import choose, launch, sequence
from lstm_fused.kernels.plan import Card, Layer, Plan
from torch import Tensor

from bench.check import in_tf32, relative_error
from bench.gpu import rows
from bench.gpu.kernels import Queued, problem, tf32
from bench.gpu.looking import judge, say
from lstm_fused import reference
from lstm_fused.backends.table import short
from lstm_fused.contract import Inputs, OutputGradients, Saved
from tests.cases import Case

# H, B; what matters most first.
SIZES = (
    *((768, 16), (1024, 16), (512, 16), (256, 16), (128, 16)),
    *((256, 64), (512, 64), (768, 64), (1024, 64), (256, 256), (64, 256), (650, 20)),
)
DTYPES = ("float16", "float32")
KERNELS = ("cluster", "persistent")
STEPS, CHECKED_STEPS = 512, 40
ROUNDS = 7
Given = tuple[Inputs, Saved, OutputGradients]
Tensors = tuple[Tensor, ...]


def tiles(layer: Layer, card: Card) -> Iterator[Plan]:
    """The tiles that take the batch in up to two launches, or in the fewest; none of twice its rows."""
    for kernel in KERNELS:
        fitting = [plan for plan in choose.fitting(kernel, layer, card) if max(8, 2 * layer.B - 1) >= plan.BB]
        least = min((choose.launches(plan, layer) for plan in fitting), default=0)
        yield from (plan for plan in fitting if choose.launches(plan, layer) <= max(least, 2))


def name(plan: Plan) -> str:
    """A tile in a few words."""
    parts = [plan.kernel, f"{plan.BB}x{plan.BH}", f"{plan.num_warps} warps"]
    parts += [f"{plan.PIECES} pieces at once"] * (plan.PIECES is not None)
    parts += [f"BK {plan.BK}"]
    parts += [f"{plan.TILES} tiles in turn"] * (plan.TILES > 1)
    parts += [f"clusters of {plan.CTAS}"] * (plan.CTAS is not None)
    return ", ".join(parts)


def prepared(given: Given, direction: str) -> Callable[[Plan], Tensors]:
    """A pass by a plan, without the products before and after the recurrence; its outputs or gradients."""
    inputs, saved, douts = given
    (T, B, _), H = inputs.x.shape, inputs.c0.shape[1]
    if direction == "forward":
        xw = inputs._replace(x=launch.input_projection(inputs.x, inputs.weight_ih), weight_ih=None)
        y, gates = inputs.x.new_empty(T, B, H), inputs.x.new_empty(T, B, 4 * H)
        c = torch.empty_like(saved.c)
        return lambda plan: (y, *sequence.forward(plan, launch.dense(xw), y, c, gates), c, gates)
    dxw = torch.empty_like(saved.gates)
    saved, douts = launch.dense(saved), launch.dense(douts)
    return lambda plan: (dxw, *sequence.backward(plan, saved, douts, dxw))


def error(run: Callable[[Plan], Tensors], plan: Plan, wanted: Sequence[Tensors], dtype: torch.dtype) -> float:
    """The largest error, in units of the reference's own in that dtype."""
    found, kind = run(plan), in_tf32(dtype)
    return max(relative_error(f, r, e, kind) for f, r, e in zip(found, *wanted, strict=True))


def wanted(case: Case, layer: Layer, device: str) -> list[Tensors]:
    """What the reference gives in that dtype, and exactly."""
    found = []
    for kind in (layer.dtype, torch.float64):
        inputs, saved, douts = problem(case, kind, device)
        forward = layer.direction == "forward"
        found.append(results(reference.forward(inputs) if forward else reference.backward(saved, douts)))
    return found


def results(out: Iterable[Tensor | None]) -> Tensors:
    """The tensors that are there."""
    return tuple(tensor for tensor in out if tensor is not None and tensor.numel())


def check(layer: Layer, plans: Sequence[Plan], device: str) -> bool:
    """Whether these tiles are right; this also compiles them."""
    case = Case("few", T=CHECKED_STEPS, B=layer.B, I=64, H=layer.H)
    exact = wanted(case, layer, device)
    run = prepared(problem(case, layer.dtype, device), layer.direction)
    right = True
    for plan in plans:
        right &= judge(f"{about(layer)} {name(plan)}", partial(error, run, plan, exact, layer.dtype))
    return right


def compare(layer: Layer, plans: Sequence[Plan], device: str) -> None:
    """Time these tiles in turn."""
    case = Case("timed", T=STEPS, B=layer.B, I=64, H=layer.H)
    run = prepared(problem(case, layer.dtype, device), layer.direction)
    clocks = {name(plan): Queued(partial(run, plan), device) for plan in plans}
    times: dict[str, list[float]] = {who: [] for who in clocks}
    for _ in range(ROUNDS):
        for who, clock in clocks.items():
            times[who].append(1e6 * clock() / STEPS)
    medians = {who: median(each) for who, each in times.items()}
    for who, microseconds in sorted(medians.items(), key=lambda item: item[1]):
        say(f"{about(layer)} {microseconds:6.3f} us ({min(times[who]):.3f}) {who}")
    shape = {"direction": layer.direction, "H": layer.H, "B": layer.B, "dtype": short(layer.dtype)}
    rows.add("tiles", **shape, microseconds=medians)


def about(layer: Layer) -> str:
    """A layer in a few words."""
    return f"{layer.direction:<8} H {layer.H} B {layer.B} {short(layer.dtype)}"


@tf32()
def main(argv: Sequence[str] | None = None) -> None:
    """Time all tiles, or check a part of them; the exit status is 1 if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tiles", description=main.__doc__)
    parser.add_argument("--part", help="K/N")
    parser.add_argument("--sizes", nargs="*", help="HxB, instead of all")
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args(argv)
    part, parts = map(int, (chosen.part or "0/1").split("/"))
    sizes = [tuple(map(int, size.split("x"))) for size in chosen.sizes or ()] or SIZES
    card, count, right = choose.card_at(torch.device(chosen.device)), 0, True
    for dtype, (H, B), direction in product(chosen.dtypes, sizes, ("forward", "backward")):
        layer = Layer(direction, H, B, getattr(torch, dtype), "tf32")
        plans = list(tiles(layer, card))
        if parts == 1:
            compare(layer, plans, chosen.device)
        elif mine := [plan for n, plan in enumerate(plans, count) if n % parts == part]:
            right &= check(layer, mine, chosen.device)
        count += len(plans)
    sys.exit(not right)


if __name__ == "__main__":
    main()
