"""Checks, tests and times the Metal engine on this Mac: python -m bench.mps; prints a table to send in."""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from lstm_fused.kernels import guard, verdicts
from torch import nn

import lstm_fused
from bench.cases import Setting
from bench.peers.modules import StepByStep, fused, torch_lstm
from bench.problem import STEPS, Problem, make_problem
from tests.cases import TIMED, Case

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# All tests of the engines and of modules on a device; those that need float64 there are skipped.
TESTS = ("tests/test_engines.py", "tests/test_on_mps.py")
# Without a Mac the emulation runs small parts of all that a Mac runs.
SMALL_TESTS = ("-k", "test_on_mps and not compile or test_outputs_and_gradients and one_step-metal")
SMALL_SIZES = ((9, 3),)
SMALL_TIMED = (Case("tiny", T=3, B=2, I=3, H=4),)
EMULATED = "EMULATED on a CPU: this shows that the command works, and nothing about a Mac"
CONTESTANTS: dict[str, Callable[[Problem], nn.Module]] = {
    "metal": partial(fused, engine="metal"),
    "reference": partial(fused, engine="reference"),
    "nn.LSTM": torch_lstm,
    "cell": StepByStep,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, test and time; the exit status is 1 if a check or a test failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.mps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="times per number")
    parser.add_argument(
        "--emulated", action="store_true", help="without a Mac: a small part, in the emulation"
    )
    args = parser.parse_args(argv)
    if args.emulated:
        return emulated(args.rounds)
    reason = lstm_fused.engines()["metal"]
    if reason is not None:
        sys.exit(
            f"verdict: nothing was done, because this needs a Mac with an Apple GPU: {reason}. "
            'make mps-check ARGS="--emulated" runs a small part in the emulation'
        )
    return run("mps", args.rounds, guard.USUAL, ["--device", "mps", *TESTS], TIMED)


def emulated(rounds: int) -> int:
    """The same on a CPU, in the emulation of tests/metal, at small sizes."""
    from tests.metal.mac import like_a_mac

    with ExitStack() as stack:
        stack.enter_context(like_a_mac(stack.enter_context(tempfile.TemporaryDirectory())))
        print(EMULATED)
        status = run("cpu", rounds, SMALL_SIZES, ["-p", "tests.metal.mac", *TESTS, *SMALL_TESTS], SMALL_TIMED)
        print(EMULATED)
    return status


def run(
    device: str, rounds: int, sizes: tuple[tuple[int, int], ...], tests: list[str], timed: tuple[Case, ...]
) -> int:
    """Check the kernels at some sizes, run tests, print times, and a verdict; 1 if something is wrong."""
    found = list(guard.check_usual(torch.device(device), sizes))
    wrong = [verdict for verdict in found if not verdict.right]
    for verdict in wrong:
        print(f"WRONG  {verdict.name}: {verdict.said}")
    print(f"{len(found)} kernels were compared with the reference", flush=True)
    failed = subprocess.run([*PYTEST, *tests], cwd=ROOT, check=False).returncode != 0
    about = f"{verdicts.card_name(torch.device(device))}, macOS {platform.mac_ver()[0]}"
    about += f", torch {torch.__version__}, lstm_fused {lstm_fused.__version__}"
    print(f"\n{about}; float32, ms forward / ms training\n")
    print_table(device, rounds, timed)
    print(f"\nverdict: {len(wrong)} kernels are wrong; the tests {'failed' if failed else 'passed'}")
    print("Please open an issue with all that was printed above.")
    return int(failed or bool(wrong))


def print_table(device: str, rounds: int, timed: tuple[Case, ...] = TIMED) -> None:
    """Time all contestants at the sizes of the other benchmarks, "failed" where one raises, and say why."""
    errors: dict[str, None] = {}  # in order, once each
    print(f"| size | (T, B, I, H) | {' | '.join(CONTESTANTS)} |\n{'| --- ' * (2 + len(CONTESTANTS))}|")
    for case in timed:
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
