"""Checks, tests and times the Metal engine on this Mac: python -m bench.mps; prints a table to send in."""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lstm_fused.kernels import guard
from torch import nn

import lstm_fused
from bench.cases import Setting
from bench.peers.modules import StepByStep, fused, torch_lstm
from bench.problem import STEPS, Problem, make_problem
from tests.cases import TIMED

ROOT = Path(__file__).parents[1]
# The tests that need no float64 on the device.
TESTS = (
    "outputs_and_gradients or variants or 24_significant or bitwise or written or in_float32 or zero_output"
)
CONTESTANTS: dict[str, Callable[[Problem], nn.Module]] = {
    "metal": partial(fused, engine="metal"),
    "reference": partial(fused, engine="reference"),
    "nn.LSTM": torch_lstm,
    "cell": StepByStep,
}


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
    command = [sys.executable, "-m", "pytest", "-q", "--device", "mps", "tests/test_engines.py"]
    failed = subprocess.run([*command, "-k", f"metal and ({TESTS})"], cwd=ROOT, check=False).returncode != 0
    about = f"{torch.backends.mps.get_name()}, macOS {platform.mac_ver()[0]}, torch {torch.__version__}"
    print(f"\n{about}, lstm_fused {lstm_fused.__version__}; float32, ms forward / ms training\n")
    print_table("mps", rounds)
    print(f"\nverdict: {len(wrong)} kernels are wrong; the tests {'failed' if failed else 'passed'}")
    return int(failed or bool(wrong))


def print_table(device: str, rounds: int) -> None:
    """Time all contestants at the sizes of the other benchmarks, "failed" where one raises, and say why."""
    errors: dict[str, None] = {}  # in order, once each
    print(f"| size | (T, B, I, H) | {' | '.join(CONTESTANTS)} |\n{'| --- ' * (2 + len(CONTESTANTS))}|")
    for case in TIMED:
        problem = make_problem(case, Setting(torch.float32, torch.get_num_threads(), None, device=device))
        cells = [case.name, str((case.T, case.B, case.I, case.H))]
        for name, make in CONTESTANTS.items():
            try:
                module = make(problem)
                steps = [partial(step, module, problem) for step in STEPS.values()]
                cells.append(" / ".join(f"{milliseconds(each, device, rounds):.2f}" for each in steps))
            except RuntimeError as error:  # of a kernel that is wrong, for one: the report goes on
                cells.append("failed")
                errors[f"{name}: {error}"] = None
        print(f"| {' | '.join(cells)} |", flush=True)
    print("".join(f"\nfailed: {error}" for error in errors))


def milliseconds(task: Callable[[], object], device: str, rounds: int) -> float:
    """Median time of a task, after two runs."""
    wait = torch.mps.synchronize if device == "mps" else torch.cpu.synchronize
    found = []
    for _ in range(rounds + 2):
        wait()
        begin = time.perf_counter()
        task()
        wait()
        found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found[2:])


if __name__ == "__main__":
    sys.exit(main())
