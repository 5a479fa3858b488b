"""What the looks of a day share: they say what is right, and compare results bit by bit."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu import rows

# In units of the reference's own error: rounding gives a few, the smallest mistake thousands.
WRONG = 30
REPEATS = 200
Tensors = list[Tensor]
Differing = Callable[[Callable[[], Tensors], Tensors], int]  # how many results differ from the wanted ones


def say(*text: object) -> None:
    """Print a line at once."""
    print(*text, flush=True)


def judge(name: str, error: Callable[[], float], limit: float = WRONG) -> bool:
    """Say how far off it is; False if that is too far, or if it cannot be told."""
    try:
        found = error()
    except Exception as problem:  # the next one may run
        if isinstance(problem, RuntimeError) and "cannot run" in str(problem):
            return not_run(name, problem)
        text = f"{type(problem).__name__}: {str(problem)[:500]}"
        say(f"BAD {name}: {text}")
        rows.add("look", name=name, right=False, problem=text)
        return False
    right = found <= limit
    say(f"{'ok ' if right else 'BAD'} {name}: off by {found:.3g} times the reference's own error")
    rows.add("look", name=name, right=right, error=found)
    return right


def not_run(name: str, refusal: RuntimeError) -> bool:
    """Say that a kernel takes no such layer, which is no fault."""
    say(f"-- {name}: not run: {str(refusal)[:300]}")
    rows.add("look", name=name, right=None, problem=str(refusal)[:300])
    return True


def repeated(repeats: int, call: Callable[[], Tensors], wanted: Tensors) -> int:
    """How many of several calls differ."""
    return sum(not all(map(torch.equal, wanted, call())) for _ in range(repeats))


def captured(call: Callable[[], Tensors], wanted: Tensors) -> int:
    """Whether a graph of the user's differs."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            found = call()
    except RuntimeError as refusal:  # a driver may not capture launches of one whole grid
        say(f"not captured: {refusal}")
        return 0
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    return not all(map(torch.equal, found, wanted))


def two_at_once(call: Callable[[], Tensors], wanted: Tensors) -> int:
    """How many launches on two streams differ: those that wait for their own programs must get along."""
    differing = 0
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(call())
        torch.cuda.synchronize()
        differing += sum(not all(map(torch.equal, one, wanted)) for one in found)
    return differing
