"""Checks, tests and times the Metal engine on this Mac: python -m bench.mps; the last table is to be sent in.

Times are medians of a forward pass and of a training step, in milliseconds, after `torch.mps.synchronize()`.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lstm_fused.kernels import guard
from torch import Tensor, nn

import lstm_fused
from examples.plain_cell import PlainCell

ROOT = Path(__file__).parents[1]
SIZES = ((28, 64, 28, 128), (100, 32, 128, 256), (256, 1, 256, 256), (35, 20, 650, 650), (128, 256, 64, 64))
# The tests that need no float64 on the device.
TESTS = "metal and (outputs_and_gradients or variants or 24_significant or bitwise or written or float32 or zero_output)"


def main() -> int:
    """Check, test and time; the exit status is 1 if a check or a test failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.mps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="times per number")
    rounds = parser.parse_args().rounds
    reason = lstm_fused.engines()["metal"]
    if reason is not None:
        sys.exit(f"verdict: nothing was done, because the Metal engine cannot run here: {reason}")
    wrong = [verdict for verdict in guard.check_usual(torch.device("mps")) if not verdict.right]
    for verdict in wrong:
        print(f"WRONG  {verdict.name}: {verdict.said}")
    command = [sys.executable, "-m", "pytest", "-q", "--device", "mps", "tests/test_engines.py", "-k", TESTS]
    failed = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    about = f"{torch.backends.mps.get_name()}, macOS {platform.mac_ver()[0]}, torch {torch.__version__}"
    print(f"\n{about}, lstm_fused {lstm_fused.__version__}; float32, ms forward / ms training\n")
    print("| (T, B, I, H) | metal | reference | nn.LSTM | plain cell |\n| --- | --- | --- | --- | --- |")
    for T, B, I, H in SIZES:
        x = torch.randn(T, B, I, device="mps")
        cells = [timed(run, parameters, x, rounds) for run, parameters in contestants(I, H)]
        print(f"| {(T, B, I, H)} | {' | '.join(cells)} |", flush=True)
    print(f"\nverdict: {len(wrong)} kernels are wrong; the tests {'failed' if failed else 'passed'}")
    return int(failed or bool(wrong))


def contestants(I: int, H: int) -> list[tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]]:
    """Functions from x to y, with their parameters."""
    ours, reference = (lstm_fused.LSTM(I, H, engine=name).to("mps") for name in ("metal", "reference"))
    theirs, cell = nn.LSTM(I, H).to("mps"), PlainCell(ours, 0)

    def steps(x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], H)
        ys = []
        for x_t in x:
            h, c = cell(x_t, h, c)
            ys.append(h)
        return torch.stack(ys)

    modules = [
        (lambda x, m=module: m(x)[0], list(module.parameters())) for module in (ours, reference, theirs)
    ]
    return [*modules, (steps, list(cell.parameters()))]


def timed(run: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], x: Tensor, rounds: int) -> str:
    """Milliseconds of a forward pass and of a training step."""

    def forward() -> None:
        with torch.no_grad():
            run(x)

    def training() -> None:
        torch.autograd.grad(run(x).sum(), parameters)

    return " / ".join(f"{median(task, rounds):.2f}" for task in (forward, training))


def median(task: Callable[[], None], rounds: int) -> float:
    """Median of the milliseconds of a task, after two runs."""
    found = []
    for n in range(rounds + 2):
        torch.mps.synchronize()
        begin = time.perf_counter()
        task()
        torch.mps.synchronize()
        if n >= 2:
            found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
