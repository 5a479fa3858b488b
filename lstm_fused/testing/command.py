"""`python -m lstm_fused --check`: all checks of the engines, with a progress bar and a line of verdict."""

import sys
import time
import warnings

import torch

from lstm_fused.backends import table, triton
from lstm_fused.testing.comparison import Check, comparisons, outcome
from lstm_fused.testing.derivatives import derivatives

WIDTH = 30  # characters of the bar


def check_engines(engine: str | None, device: str | None) -> bool:
    """Check the named engine, or all that run on this machine; True if none is wrong.

    Args:
        engine: an engine's name.
        device: the device; by default the first that the engine runs on.

    Raises:
        ArgumentError: no engine has that name.
        RuntimeError: the named engine cannot run on this device.
    """
    right = True
    for row in table.named(engine):
        on = torch.device(device or (row.devices or ("cpu",))[0])
        slow = row.name == "triton" and triton.INTERPRETED
        if engine is None and (slow or row.why_not(on, torch.float32)):
            continue
        checks = comparisons(row.name, on)
        right &= run(f"{row.name} on {on}", [*checks, *derivatives(row.name, on)])
    return right


def run(title: str, checks: list[Check]) -> bool:
    """Run checks and print the verdict, with a line for each that fails."""
    start, wrong = time.perf_counter(), []
    with warnings.catch_warnings():
        # PyTorch's own, of its first use of forward mode.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        for done, check in enumerate(checks):
            bar(title, done, len(checks), check.name)
            if (said := outcome(check)) is not None:
                wrong.append(said)
    bar("", 0, 0, "")
    spent = f"{len(checks)} checks in {time.perf_counter() - start:.0f} s"
    print(f"{title}: " + (f"FAILED {len(wrong)} of {spent}" if wrong else f"passed {spent}"))
    for said in wrong:
        print(f"  {said}")
    return not wrong


def bar(title: str, done: int, total: int, name: str) -> None:
    """Draw the progress bar on a terminal; without a title, remove it."""
    if sys.stderr.isatty():
        full = done * WIDTH // max(total, 1)
        line = f"{title} [{'#' * full}{'.' * (WIDTH - full)}] {done}/{total} {name}" if title else ""
        print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
